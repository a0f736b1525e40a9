"""Credit assignment: from the rewards of a whole rollout to advantages, by pure functions that know all of it.

* groups of responses to one prompt: ``grpo rloo``

A credit function's positional parameters are the inputs it needs (``credit/options.py``), its keyword-only ones its
options. It returns one number a response, one a response token (a ``Ragged``), or such numbers by the name of a field
of ``RolloutBatch``.
"""

from rlhf_lightning.credit.groups import grpo, rloo
from rlhf_lightning.credit.options import INPUTS, credit_function, needs, takes, validate

__all__ = ["INPUTS", "credit_function", "grpo", "needs", "rloo", "takes", "validate"]
