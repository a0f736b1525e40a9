"""Selectors: which samples of a round become which groups, by pure functions that see the whole round.

* one pair a prompt: ``best_and_worst best_and_another length_penalised length_calibrated win_probability random_pair``
* several pairs a prompt: ``all_pairs adjacent_pairs rejection_sampling data_vs_policy policy_vs_reference``
* single responses: ``best_of_n threshold``
* lists: ``win_rates``

A selector's positional parameters are the inputs it needs (``selection/options.py``), its keyword-only ones its
options. It gives ``types.Selected``: no group has a sample without a score, no cut-off sample wins unless
``cut_off=keep`` lets it, and what is left out is counted: ``left_out`` (prompts without enough usable samples),
``tie_rate`` (ties among what was compared), ``cut_off_rate`` and ``unscored_rate`` (of all samples).
"""

from rlhf_lightning.renamed import renamed
from rlhf_lightning.selection.calibrated import length_calibrated
from rlhf_lightning.selection.extremes import best_and_another, best_and_worst, length_penalised
from rlhf_lightning.selection.filters import best_of_n, threshold
from rlhf_lightning.selection.opponents import data_vs_policy, policy_vs_reference, random_pair
from rlhf_lightning.selection.options import (
    INPUTS,
    kinds,
    least_samples,
    makes,
    needs,
    selector,
    sources,
    takes,
    validate,
)
from rlhf_lightning.selection.probability import win_probability, win_rates
from rlhf_lightning.selection.ranking import adjacent_pairs, all_pairs
from rlhf_lightning.selection.rejection import rejection_sampling

__all__ = [
    "INPUTS",
    "adjacent_pairs",
    "all_pairs",
    "best_and_another",
    "best_and_worst",
    "best_of_n",
    "data_vs_policy",
    "kinds",
    "least_samples",
    "length_calibrated",
    "length_penalised",
    "makes",
    "needs",
    "policy_vs_reference",
    "random_pair",
    "rejection_sampling",
    "selector",
    "sources",
    "takes",
    "threshold",
    "validate",
    "win_probability",
    "win_rates",
]

__getattr__ = renamed(__name__, {"data_vs_own": "data_vs_policy"})
