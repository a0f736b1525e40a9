"""Rounds of the policy's own samples; two rounds of eight steps, or sixteen of one, as the cases have them."""

from rlhf_lightning.claims.claim import START, Arm, Check, Claim, learns
from rlhf_lightning.claims.papers._common import OFFLINE, arm, case

_RSO = arm("rso_sigmoid", "rounds=rso")
_PARENT = Arm("dpo", ("data.source.size=512", "callbacks=[tiny,last]"), seeds=(1,))
_DICE = Arm(
    "dpo",
    (*case("dpo", "rounds=dice").overrides, f"ckpt_path={START}/checkpoints/last.ckpt"),
    start=_PARENT,
)

CLAIMS = [
    Claim(
        "arXiv:2402.04792",
        "OAIF: DPO on two fresh samples, labelled at every step, beats DPO on a fixed set of pairs.",
        (Check(arm("dpo", "rounds=online"), OFFLINE),),
    ),
    Claim(
        "arXiv:2405.07863",
        "RLHF Workflow: rounds of DPO on the best and worst of eight samples beat DPO on a fixed set of pairs.",
        (Check(arm("dpo", "rounds=rlhflow"), OFFLINE),),
    ),
    Claim(
        "arXiv:2309.06657",
        "RSO: pairs that rejection sampling draws from the estimated optimal policy teach more than the data's pairs.",
        (Check(_RSO, Arm("rso_sigmoid", OFFLINE.overrides)),),
    ),
    Claim(
        "arXiv:2401.01335",
        "SPIN: to tell demonstrations from own samples improves a policy without any reward.",
        (learns(case("spin", "rounds=spin")),),
    ),
    Claim(
        "arXiv:2405.00675",
        "SPPO: regression on the chances of beating the policy's own samples, round by round, beats rounds of DPO.",
        (Check(arm("sppo_soft", "rounds=sppo"), arm("dpo", "rounds=iterative")),),
    ),
    Claim(
        "arXiv:2405.21046",
        "XPO: a bonus for leaving the reference's samples finds what online DPO does not.",
        untestable="the base draws every good response often enough; on bandits: tests/losses/test_bandits.py",
    ),
    Claim(
        "arXiv:2312.00886",
        "Nash-MD: where preferences go in a circle, the policy comes near the mixture that nothing beats.",
        measured_by="docs/rounds.md: a world of three words (pytest -m slow tests/learning/test_cyclic.py)",
    ),
    Claim(
        "arXiv:2406.09760",
        "DICE: a DPO policy improves by labelling its own samples with its implicit reward.",
        (Check(_DICE, _PARENT),),
    ),
    Claim(
        "arXiv:2401.10020",
        "Self-Rewarding: a policy that judges its own samples improves, and its judgment too.",
        measured_by="docs/rounds.md: a model with words for grades (pytest -m slow tests/learning/test_own_judge.py)",
    ),
]
