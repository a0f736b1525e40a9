"""Graders: rules, similarities, language models and Python programs that give partial credit; formulas over them."""

from rlhf_lightning.rewards.graders.base import Grade, Grader
from rlhf_lightning.rewards.graders.multi import GRADERS, Means, make_grader
from rlhf_lightning.rewards.graders.reward import GraderReward
from rlhf_lightning.rewards.graders.sandbox import Limits
from rlhf_lightning.rewards.graders.templates import Context

__all__ = ["GRADERS", "Context", "Grade", "Grader", "GraderReward", "Limits", "Means", "make_grader"]
