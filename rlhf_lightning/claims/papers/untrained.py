"""Methods that train nothing: prompts, searches of prompts and guidance, measured by a chain."""

from rlhf_lightning.claims.claim import Claim

_CHAIN = "docs/training_free.md (rlhf chain experiment=compare_training_free)"
_SMALL = "the tiny base cannot read worked examples or rules; with a language model: docs/training_free_smollm2.md"

CLAIMS = [
    Claim(
        "arXiv:2312.01552",
        "URIAL: an instruction and three worked examples align a base model nearly as well as fine-tuning.",
        untestable=_SMALL,
    ),
    Claim(
        "arXiv:2312.15907",
        "OPO: rules that are retrieved for each question align a model with norms that change, without training.",
        untestable=_SMALL,
    ),
    Claim(
        "arXiv:2311.04155",
        "BPO: a model that rewrites prompts makes another model's responses better.",
        untestable="the tiny world has no good and bad wording of one question to learn a rewriter from",
    ),
    Claim(
        "arXiv:2309.03409",
        "OPRO: a language model that sees texts with their scores writes better ones.",
        measured_by=_CHAIN,
    ),
    Claim(
        "arXiv:2507.19457",
        "GEPA: texts that lead on some example, improved by reflection, beat reinforcement learning with few samples.",
        measured_by=_CHAIN,
    ),
    Claim(
        "arXiv:2310.17022",
        "Controlled decoding: the best of several blocks, by a prefix scorer, comes near the best of n responses.",
        measured_by=_CHAIN,
    ),
    Claim(
        "arXiv:2401.08565",
        "Proxy tuning: a small tuned model's difference to its base steers a large model as tuning would.",
        untestable="the tiny world has one size of model",
    ),
    Claim(
        "arXiv:2402.02992",
        "DeRa: a mixture of logits is the policy of another KL strength, without another training.",
        measured_by=_CHAIN,
    ),
    Claim(
        "arXiv:2402.01694",
        "ARGS: a reward of prefixes at each token raises the reward of responses without training.",
        untestable="the gold reward is one of whole sentences, which says nothing of their beginnings",
    ),
]
