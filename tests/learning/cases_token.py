"""Token-level losses: the gold reward rises; Cringe also claims that alternatives gain on the undesirable tokens.

Measured at 64 steps (seed 1, the base has 0.63): cut 2.00, cut_paper 1.90, odds_ratio_judgment 1.61, cringe 1.30,
pairwise_cringe 1.42. In this world the likelihood term does the work of the Cringe losses: with alpha=0 they reach 1.50
and 1.48, so the contrast gets a claim of its own.
"""

from tests.learning.harness import Case

CASES = [
    Case("cut", representative=True),
    Case("cut_paper"),
    Case("odds_ratio_judgment"),
    Case("cringe"),
    # 5.9 nats at the base, and still with alpha=0; 4.0 was measured. One nat is far above what sampling can do: with
    # k=1 nothing is sampled.
    Case("cringe", metric="val/contrast", start=5.9, margin=1.0, falls=True),
    Case("pairwise_cringe"),
]
