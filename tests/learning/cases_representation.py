"""RAHF and LoRRA on a base that obeys the tiny world's two contexts; RAHF-Dual has a test of its own."""

from tests.learning.harness import Case

#: 32 steps.
SHORT = ("data.source.size=512",)

CASES = [
    # What the base would say under the good context it comes to say without one.
    Case("representation_fit", overrides=SHORT),
    Case("lorra", overrides=SHORT),
    # The likelihood is higher under the context that a response obeys, which the base finds by 0.02 nats a token as
    # often as not: an accuracy over 512 responses has a standard error of 0.02.
    Case(
        "contrastive_instruction",
        overrides=SHORT,
        metric="val/instruction/accuracy",
        start=0.5,
        margin=0.2,
        flipped_limit=0.1,
    ),
]
