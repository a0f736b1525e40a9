"""Demonstrations, distillation, hidden states, and comparisons of methods."""

from rlhf_lightning.claims.claim import Arm, Check, Claim, learns
from rlhf_lightning.claims.papers._common import case

CLAIMS = [
    Claim(
        "arXiv:2508.05629",
        "DFT: likelihoods weighted by the tokens' own probabilities generalise better than SFT.",
        (Check(Arm("dft"), Arm("sft")),),
    ),
    Claim(
        "arXiv:2306.13649",
        "GKD: a student learns more from its teacher on its own samples than on given responses.",
        untestable="the method here distils on given responses; the student's own samples are no part of it",
    ),
    Claim(
        "arXiv:2402.11138",
        "CoIN: contrast brings the states of instructions that mean the same together, away from hard negatives.",
        (learns(case("coin")),),
    ),
    Claim(
        "arXiv:2312.15997",
        "RAHF: to move hidden states along the difference that preferences make aligns a policy.",
        (learns(case("representation_fit")),),
    ),
    Claim(
        "arXiv:2310.01405",
        "LoRRA: an adapter that moves hidden states as an added request does changes the behaviour without it.",
        (learns(case("lorra")),),
    ),
]
