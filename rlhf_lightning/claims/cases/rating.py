"""Reward heads on single responses, and a judge of pairs: held-out labels are predicted."""

from rlhf_lightning.claims.case import Case

CASES = [
    # 256 held-out responses or pairs: a standard error of an accuracy near 1/2 is 0.03.
    Case(
        "binary_discrimination",
        ["trainer.max_epochs=2"],
        metric="val/accuracy",
        start=0.5,
        margin=0.1,
        flipped_limit=0.05,  # three halves of a standard error; 0.04 was seen
    ),
    Case("pairwise_judge", metric="val/accuracy", start=0.5, margin=0.1),
    # Held-out steps are about animals whose facts no label covers: 0.53 there, chance. The claim is about the steps
    # of training, where 1.0 was measured; a margin of logits would also grow with the gradient sign flipped.
    Case("process_reward", ["trainer.max_epochs=3"], metric="train/accuracy", start=0.5, margin=0.3),
    # Root mean squared error of "form", 1 for a sentence and 0 for noise: a constant gives about 0.4.
    Case("attribute_regression", metric="val/error/form", start=0.4, margin=0.1, falls=True),
]
