"""Labelled responses: the gold reward of the policy rises without a single pair."""

from rlhf_lightning.claims.case import Case

CASES = [
    Case("kto"),
    Case("bco"),
    Case("bco_udm"),
    Case("apo_zero_unpaired"),
    Case("unlikelihood"),
]
