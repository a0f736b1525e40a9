"""Distillation, contrastive instruction tuning, and ILQL, which also has a world of its own (test_random_walks.py)."""

from rlhf_lightning.claims.case import Case

CASES = [
    # With the context the base responds well; the policy must learn to do so without it.
    Case("context_distillation"),
    Case("context_distillation", overrides=("method.loss.classes=8",)),
    # A model of random weights learns the base's distributions: the share of demonstrated words that it finds most
    # likely rises from nothing. A word at random is right once in 180 times, the base in four of five.
    Case(
        "knowledge_distillation",
        metric="val/token/accuracy",
        start=0.0,
        margin=0.4,
        flipped_limit=0.1,
    ),
    # The states of two wordings come closer than those of an instruction and its hard negative. Read at the prompt's
    # last token, before any response, the base tells them apart by 0.001; the difference is a mean over
    # 512 instructions whose cosines vary by about 0.2, so 0.1 is far from chance.
    Case(
        "coin",
        overrides=("method.pooling=last_prompt",),
        metric="val/cosine/gap",
        start=0.0,
        margin=0.1,
        flipped_limit=0.05,
    ),
    # Decoded by value with a weight of 2. Imitating the base's responses, good and bad, makes the policy itself worse.
    Case("ilql", margin=0.45),
]
