"""Responses with a label each, criticised ones, and contrast at single tokens."""

from rlhf_lightning.claims.claim import Check, Claim, learns
from rlhf_lightning.claims.papers._common import DPO, arm, case

CLAIMS = [
    Claim(
        "arXiv:2402.01306",
        "KTO: whether single responses are desirable teaches as much as pairs do (to 0.3 points of DPO).",
        (Check(arm("kto"), DPO, least=-0.3),),
    ),
    Claim(
        "arXiv:2404.04656",
        "BCO: a classifier of desirable responses, whose logit is the reward, beats KTO.",
        (Check(arm("bco"), arm("kto")),),
    ),
    Claim(
        "arXiv:1908.04319",
        "Unlikelihood: to make undesirable tokens less likely, beside maximum likelihood, gives better text.",
        (learns(case("unlikelihood")),),
    ),
    Claim(
        "arXiv:2211.05826",
        "Cringe: the contrast of an undesirable token with one of the model's likeliest beats unlikelihood.",
        (Check(arm("cringe"), arm("unlikelihood")),),
    ),
    Claim(
        "arXiv:2312.16682",
        "Pairwise Cringe: Cringe's contrast on pairs, gated by their margin, beats DPO.",
        (Check(arm("pairwise_cringe"), DPO),),
    ),
    Claim(
        "arXiv:2312.14591",
        "CUT: unlikelihood at those tokens alone that a criticism is about beats unlikelihood of the whole response.",
        (Check(arm("cut"), arm("unlikelihood")),),
    ),
    Claim(
        "arXiv:2311.08045",
        "APO: a reward model that is trained on the policy's samples, round by round, keeps up with the policy.",
        measured_by="docs/rounds.md: a game of several jobs (rlhf game experiment=apo_tiny)",
    ),
]
