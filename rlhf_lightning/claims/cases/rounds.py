"""Rounds of the policy's own samples: the gold reward rises as it does from the data's groups.

The base has 0.55 points; the 32 steps of conf/world/rounds reach 1.9 to 3.2 (docs/rounds.md). Here each has 16, in two
rounds or in sixteen. With the gradient sign flipped the worse samples become likelier.
"""

from rlhf_lightning.claims.case import Case

#: By the name of the rounds: the method, and other options.
_ROUNDS = {
    "iterative": ("dpo", "reward=gold"),
    "rlhflow": ("dpo", "reward=gold"),
    "online": ("dpo", "reward=gold"),
    "raft": ("sft", "reward=gold"),
    "rso": ("rso_sigmoid", "reward=gold", "data.source.size=256"),
    "spin": ("spin",),
    "sppo": ("sppo_soft", "reward=gold"),
    "xpo": ("xpo", "reward=gold"),
    "ilr_dpo": ("ilr_dpo", "reward=gold"),
    "nash_md": ("nash_md", "reward=gold"),
    "cringe": ("cringe", "reward=gold"),
    "pairwise_cringe": ("pairwise_cringe", "reward=gold"),
    # The loop alone: whether a policy can judge its own samples is another claim (test_own_judge.py).
    "self_rewarding": ("dpo", "reward=gold"),
}
#: The start of a run of DICE: 16 steps of DPO.
_BY_DPO = ("method=dpo", "data.source.size=512", "callbacks=[tiny,last]")
CASES = [
    Case(method, [f"rounds={name}", "data.source.size=512", *options]) for name, (method, *options) in _ROUNDS.items()
]
# Its gold reward rises by less than five standard errors. The log-ratio to the start of its last round
# orders 0.71 of 256 held-out pairs as gold does, and 0.29 with its sign flipped (± 0.03). Half of a
# round's pairs are the data's.
CASES += [
    Case(
        "dpo",
        ["rounds=dice", "reward=dice", "rounds.parent=model", "data.source.size=256"],
        metric="val/reward/accuracy",
        start=0.5,
        margin=0.1,
        start_from=_BY_DPO,
    )
]
