"""Selectors: which samples of a round become which groups, by pure functions that see the whole round.

A selector's positional parameters are the inputs it needs (``selection/options.py``), its keyword-only ones its
options. It gives ``types.Selected``: no group has a sample without a score, a cut-off sample never wins, and what is
left out is counted.
"""

from rlhf_lightning.selection.options import INPUTS, kinds, least_samples, makes, needs, selector, takes, validate

__all__ = ["INPUTS", "kinds", "least_samples", "makes", "needs", "selector", "takes", "validate"]
