"""Reward heads on single responses, and a judge of pairs: held-out labels are found."""

from tests.learning.harness import Case

CASES = [
    # 256 held-out answers or pairs: a standard error of an accuracy near 1/2 is 0.03.
    Case(
        "binary_discrimination",
        ["trainer.max_epochs=2"],
        metric="val/accuracy",
        start=0.5,
        margin=0.1,
        representative=True,
    ),
    Case("pairwise_judge", metric="val/accuracy", start=0.5, margin=0.1),
    # Right steps are scored above wrong ones, in logits. Held-out steps are about animals whose facts no label has
    # shown, so the claim is about the prompts of training.
    Case("process_reward", metric="train/reward/margin", start=0.0, margin=1.0),
    # Root mean squared error of "form", 1 for a sentence and 0 for noise: a constant gives about 0.4.
    Case("attribute_regression", metric="val/error/form", start=0.4, margin=0.1, falls=True),
]
