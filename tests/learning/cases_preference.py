"""Pairs and demonstrations: every method claims that the gold reward of the policy rises."""

from tests.learning.harness import Case

CASES = [
    Case("dpo", representative=True),
    Case("simpo", representative=True),
    Case("sft", representative=True),
    Case("ipo"),
]
