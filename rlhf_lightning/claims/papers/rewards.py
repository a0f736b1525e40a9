"""Reward models and judges."""

from rlhf_lightning.claims.claim import Arm, Check, Claim, learns
from rlhf_lightning.claims.papers._common import arm, case

_ACCURACY = "val/reward/accuracy"
_ADVICE = ("data.source.size=1024", "data.source.topics=[advice]", "reward=gold_safety", "callbacks.gold=null")
_FREE = Arm("ppo", _ADVICE, (1, 2))

CLAIMS = [
    Claim(
        "arXiv:2009.01325",
        "Reward models from comparisons predict which response people prefer, on inputs that were held out.",
        (learns(case("bradley_terry")),),
    ),
    Claim(
        "arXiv:2203.02155",
        "InstructGPT: a reward model learns from all comparisons of a ranking at once, and predicts held-out ones.",
        (learns(case("k_wise")),),
    ),
    Claim(
        "arXiv:1909.08593",
        "Rewards learned from comparisons of four responses, and PPO held near the start by a KL penalty, follow "
        "preferences.",
        (learns(case("best_of_k")), learns(case("ppo"), seeds=(1, 2))),
    ),
    Claim(
        "arXiv:2308.01320",
        "DeepSpeed-Chat: RLHF of models up to hundreds of billions of parameters, fast and cheap.",
        untestable="the claim is about the speed of large models on many GPUs",
    ),
    Claim(
        "ColossalChat, 2023",
        "The log-exp loss ranks as the Bradley-Terry loss does: they are one function.",
        (
            Check(arm("log_exp"), arm("bradley_terry"), _ACCURACY, least=-0.1),
            Check(arm("bradley_terry"), arm("log_exp"), _ACCURACY, least=-0.1),
        ),
    ),
    Claim(
        "arXiv:2402.07319",
        "ODIN: a quality head beside a length head is a reward that length explains less, at no loss of accuracy.",
        (
            Check(arm("odin"), arm("bradley_terry"), "val/reward/length_bias", falls=True, magnitude=True),
            Check(arm("odin"), arm("bradley_terry"), _ACCURACY, least=-0.1),
        ),
    ),
    Claim(
        "arXiv:2406.12845",
        "ArmoRM: ratings by several attributes, weighed by a gate on the prompt, make an interpretable reward.",
        (learns(case("attribute_regression")),),
        measured_by="the ratings alone; the gate: tests/learning/test_two_stages.py",
    ),
    Claim(
        "arXiv:2305.20050",
        "Process supervision beats supervision of the final result when a reward model picks among many solutions.",
        untestable="the tiny world has claims of one step each, and no long solutions to pick from",
    ),
    Claim(
        "arXiv:2310.12773",
        "Safe RLHF: a limit on the mean cost keeps a policy harmless where PPO on the reward alone does not.",
        (Check(Arm("ppo_lagrangian", _ADVICE, (1, 2)), _FREE, "val/reward/cost", least=0.3, falls=True),),
    ),
    Claim(
        "arXiv:2112.00861",
        "A prompt's behaviour can be distilled into the model, which then needs no prompt.",
        (learns(case("context_distillation")),),
    ),
]
