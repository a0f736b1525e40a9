"""Credit assignment: from the rewards of a whole rollout to advantages, by pure functions that know all of it.

* against one number for all prompts: ``mean_baseline``
* against the other responses to the prompt: ``rloo grpo grpo_process``
* against the greedy response: ``remax``
* standardised over the rollout: ``reinforce_pp reinforce_pp_baseline``
* against a critic: ``gae lagrangian``
* without a reward: ``self_confidence``

A credit function's positional parameters are the inputs it needs (``credit/options.py``), its keyword-only ones its
options. It returns one number a response, one a response token (a ``Ragged``), or such numbers by the name of a field
of ``RolloutBatch``.
"""

from rlhf_lightning.credit.confidence import self_confidence
from rlhf_lightning.credit.groups import grpo, grpo_process, mean_baseline, rloo
from rlhf_lightning.credit.options import INPUTS, credit_function, needs, takes, validate
from rlhf_lightning.credit.returns import reinforce_pp, reinforce_pp_baseline, remax
from rlhf_lightning.credit.temporal import gae, lagrangian

__all__ = [
    "INPUTS",
    "credit_function",
    "gae",
    "grpo",
    "grpo_process",
    "lagrangian",
    "mean_baseline",
    "needs",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "remax",
    "rloo",
    "self_confidence",
    "takes",
    "validate",
]
