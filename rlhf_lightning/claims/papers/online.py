"""Policy gradients on rewards of the policy's own samples, at as many samples where two methods are compared."""

from rlhf_lightning.claims.claim import BASE, Arm, Check, Claim, learns
from rlhf_lightning.claims.papers._common import LENGTH, arm, case

_CORRECT = "val/gold/correct"
_FACTS = ("data.source.topics=[fact]", "reward=gold_correct")
_GRPO = Arm("grpo", ("data.source.size=256",))

CLAIMS = [
    Claim(
        "arXiv:2402.14740",
        "RLOO: plain policy gradients suffice, and the mean of a prompt's other samples is a better baseline than a "
        "running mean.",
        (learns(case("rloo")), Check(arm("rloo"), arm("reinforce"))),
    ),
    Claim(
        "arXiv:2310.10505",
        "ReMax: the greedy response's reward as a baseline makes plain policy gradients efficient without a critic.",
        (Check(arm("remax"), arm("reinforce")),),
    ),
    Claim(
        "arXiv:2402.03300",
        "GRPO: rewards standardised within a prompt's samples replace a critic.",
        (learns(case("grpo")),),
    ),
    Claim(
        "arXiv:2503.14476",
        "DAPO: a higher upper clip, prompts of equal rewards left out and a token mean beat GRPO.",
        (Check(arm("dapo"), arm("grpo")),),
    ),
    Claim(
        "arXiv:2503.20783",
        "Dr. GRPO: without GRPO's divisors responses do not grow longer, at no loss of reward.",
        (Check(arm("dr_grpo"), arm("grpo"), LENGTH, falls=True), Check(arm("dr_grpo"), arm("grpo"), least=-0.3)),
    ),
    Claim(
        "arXiv:2501.03262",
        "REINFORCE++: advantages standardised over the whole rollout, with a prompt's mean as baseline, match GRPO.",
        (Check(arm("reinforce_pp_baseline"), _GRPO, least=-0.3),),
    ),
    Claim(
        "arXiv:2506.13585",
        "CISPO: a clipped weight that leaves every token its gradient learns faster than DAPO.",
        (Check(arm("cispo"), Arm("dapo", ("data.source.size=256",))),),
    ),
    Claim(
        "arXiv:2507.18071",
        "GSPO: ratios of whole responses beat GRPO's ratios of tokens.",
        (Check(arm("gspo"), _GRPO),),
    ),
    Claim(
        "arXiv:2507.20673",
        "GMPO: the geometric mean of tokens' ratios beats GRPO's arithmetic one.",
        (Check(Arm("gmpo", ("data.source.size=256",)), _GRPO),),
    ),
    Claim(
        "arXiv:2504.16084",
        "TTRL: the majority of a model's samples as the label raises the share of right responses, without any label.",
        (Check(Arm("ttrl", ("data.source.size=512",)), BASE, _CORRECT),),
    ),
    Claim(
        "arXiv:2506.06395",
        "RLSC: a model's own confidence as the reward raises the share of right responses.",
        (Check(Arm("rlsc", ("data.source.size=640",)), BASE, _CORRECT),),
    ),
    Claim(
        "OpenAI, 2024",
        "RFT: a grader's partial credit on a few hundred questions raises the share of what is right.",
        (learns(case("rft")),),
    ),
]
