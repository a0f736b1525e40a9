"""Distillation and contrastive instruction tuning; ILQL has its own world (``test_random_walks.py``)."""

from tests.learning.harness import Case

CASES = [
    # Behind the context the base answers well; without it the policy must come to answer so.
    Case("context_distillation", representative=True),
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
    # The states of two wordings come closer than those of an instruction and its hard negative. The cosines' difference
    # is one over 256 instructions, with a standard deviation of about 0.1 each: 0.1 is far from chance.
    Case("coin", metric="val/cosine/gap", start=0.0, margin=0.3),
]
