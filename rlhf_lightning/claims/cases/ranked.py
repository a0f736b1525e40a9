"""Ranked lists and fine-tuning on scored responses; lists of two are the pairs of RSO's losses."""

from rlhf_lightning.claims.case import Case

CASES = [
    Case("plackett_luce"),
    Case("best_of_n"),
    Case("pro"),
    Case("rrhf"),
    Case("exo_k"),
    Case("reward_weighted"),
    Case("rso_hinge"),
    Case("rso_sigmoid"),
    Case("nash_md"),
]
