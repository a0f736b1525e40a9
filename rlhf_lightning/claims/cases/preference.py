"""Pairs and demonstrations: every method claims that the gold reward of the policy rises."""

from rlhf_lightning.claims.case import Case

WITH_REFERENCE = [
    *("cdpo", "robust_dpo", "odpo", "r_dpo", "rpo", "beta_dpo", "ld_dpo", "ilr_dpo", "alpha_dpo", "tr_dpo"),
    *(
        "f_dpo",
        "ipo",
        "hinge",
        "sigmoid_norm",
        "exo",
        "nca",
        "sppo",
        "sppo_soft",
        "aot",
        "aot_unpaired",
        "discopop",
        "dpop",
        "wpo",
    ),
    *("apo_zero", "apo_down", "bco_pair", "kto_pair", "mpo", "xpo", "spin"),
]
WITHOUT_REFERENCE = ["simpo", "simper", "slic", "cpo", "orpo", "alpha_po", "preferred_ft"]
DEMONSTRATIONS = ["sft", "dft", "imitation"]
#: DPO is in the default suite.
CASES = [Case("dpo", representative=True)]
CASES += [Case(method) for family in (WITH_REFERENCE, WITHOUT_REFERENCE, DEMONSTRATIONS) for method in family]
