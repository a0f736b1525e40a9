"""RAHF and LoRRA on a base that obeys the tiny world's two contexts."""

from rlhf_lightning.claims.case import Case

#: 32 steps.
SHORT = ("data.source.size=512",)

CASES = [
    # The policy learns to respond without a context as the base does with the good one.
    Case("representation_fit", overrides=SHORT),
    Case("lorra", overrides=SHORT),
    # The base ranks 0.64 of 512 of its samples by the context that they obey; two accuracies over the same
    # responses differ by 0.02 by chance.
    Case(
        "contrastive_instruction",
        overrides=SHORT,
        metric="val/instruction/accuracy",
        start=0.643,
        margin=0.06,
    ),
]
