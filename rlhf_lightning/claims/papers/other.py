"""Demonstrations, distillation, hidden states, and comparisons of methods."""

from rlhf_lightning.claims.claim import RUN, START, Arm, Check, Claim, learns
from rlhf_lightning.claims.papers._common import case

_SFT = Arm("sft", ("callbacks=[tiny,export]",), seeds=(1,))
_STEPS = ("trainer.max_steps=48", "trainer.max_epochs=-1")


def _from_base(method: str) -> Arm:
    """48 steps on 1536 rows, from the base."""
    return Arm(method, ("data.source.size=1536", *_STEPS))


def _from_sft(method: str, size: int = 1536) -> Arm:
    """48 steps on some rows, from a model that was fine-tuned on demonstrations."""
    return Arm(method, (f"data.source.size={size}", *_STEPS, RUN, f"model.run={START}"), start=_SFT)


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
    Claim(
        "arXiv:2404.14723",
        "Across starts and sizes: a small part of the data comes close to all of it; DPO needs SFT before it, KTO and "
        "CPO do not.",
        (
            Check(_from_sft("dpo", 256), _from_sft("dpo"), least=-0.3),
            Check(_from_sft("dpo"), _from_base("dpo")),
            Check(_from_base("kto"), _from_sft("kto"), least=-0.3),
            Check(_from_base("cpo"), _from_sft("cpo"), least=-0.3),
        ),
    ),
]
