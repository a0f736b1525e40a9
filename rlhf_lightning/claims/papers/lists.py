"""Ranked lists and responses with scores."""

from rlhf_lightning.claims.claim import Arm, Check, Claim, learns
from rlhf_lightning.claims.papers._common import arm, case

_RAFT = ("rounds=raft", "rounds.inner_epochs=1", "reward=gold", "data.source.size=512")

CLAIMS = [
    Claim(
        "arXiv:2306.17492",
        "PRO: a response against all worse ones teaches more than fine-tuning on the best.",
        (Check(arm("pro"), arm("best_of_n")),),
    ),
    Claim(
        "arXiv:2304.05302",
        "RRHF: hinges on pairs in the wrong order, beside fine-tuning on the best, beat fine-tuning on the best.",
        (Check(arm("rrhf"), arm("best_of_n")),),
    ),
    Claim(
        "arXiv:2304.06767",
        "RAFT: fine-tuning on the best of a prompt's samples raises the reward, the more the more samples there are.",
        (Check(Arm("sft", (*_RAFT, "rounds.draws.0.n=4")), Arm("sft", (*_RAFT, "rounds.draws.0.n=1"))),),
    ),
    Claim(
        "arXiv:1910.00177",
        "Advantage-weighted regression: fine-tuning weighted by exp(score) beats fine-tuning on all responses alike.",
        (Check(arm("reward_weighted"), Arm("reward_weighted", ("method.loss.beta=1.0e6",))),),
    ),
    Claim(
        "arXiv:2206.11871",
        "ILQL: decoding by learned values beats the responses that they were learned from, and the policy alone.",
        (learns(case("ilql")), Check(arm("ilql"), Arm("ilql", ("method.decoding_beta=0.0",)))),
    ),
]
