"""Token-level losses: the gold reward rises. The effect of Cringe's contrast alone: test_cringe_contrast.py.

Measured at 64 steps (seed 1, the base has 0.63): cut 2.00, cut_paper 1.90, odds_ratio_judgment 1.61, cringe 1.30,
pairwise_cringe 1.42. In this world the likelihood term does the work of the Cringe losses: with alpha=0 they reach 1.50
and 1.48.
"""

from rlhf_lightning.claims.case import Case

CASES = [
    Case("cut"),
    Case("cut_paper"),
    Case("odds_ratio_judgment"),
    Case("cringe"),
    Case("pairwise_cringe"),
]
