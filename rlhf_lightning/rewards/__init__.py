"""Rewards of responses: the protocol, models, verifiers, rules; and the agreement of a reward with pairs."""

import warnings
from typing import Any

from rlhf_lightning.rewards.base import Reward, Scores, WinMatrix, metrics_of, score_groups, why_unscored
from rlhf_lightning.rewards.classifier import ClassifierReward
from rlhf_lightning.rewards.composite import Composite
from rlhf_lightning.rewards.confidence import SelfConfidence
from rlhf_lightning.rewards.expected_rating import ExpectedRating
from rlhf_lightning.rewards.function import FunctionReward, as_reward
from rlhf_lightning.rewards.implicit import ImplicitReward, implicit_rewards
from rlhf_lightning.rewards.judge import JudgeReward
from rlhf_lightning.rewards.length import LengthReward, OverlongPenalty, RelativeLength
from rlhf_lightning.rewards.lexicon import LexiconSentiment
from rlhf_lightning.rewards.llm_judge import ComparisonJudge, RatingJudge
from rlhf_lightning.rewards.log_prob import LogProbReward
from rlhf_lightning.rewards.majority import MajorityVote
from rlhf_lightning.rewards.matching import ExactMatch, FormatReward, RegexMatch
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.rewards.process import ProcessReward
from rlhf_lightning.rewards.repetition import RepetitionPenalty
from rlhf_lightning.rewards.text_reward import TextReward
from rlhf_lightning.rewards.verifiers import MathReward, ReasoningGym
from rlhf_lightning.rewards.win_matrix import matrix_from_scores, matrix_of, mean_wins, win_matrices
from rlhf_lightning.rewards.win_rate import WinRate

__all__ = [
    "ClassifierReward",
    "ComparisonJudge",
    "Composite",
    "ExactMatch",
    "ExpectedRating",
    "FormatReward",
    "FunctionReward",
    "ImplicitReward",
    "JudgeReward",
    "LengthReward",
    "LexiconSentiment",
    "LogProbReward",
    "MajorityVote",
    "MathReward",
    "ModelReward",
    "OverlongPenalty",
    "ProcessReward",
    "RatingJudge",
    "ReasoningGym",
    "RegexMatch",
    "RelativeLength",
    "RepetitionPenalty",
    "Reward",
    "Scores",
    "SelfConfidence",
    "TextReward",
    "WinMatrix",
    "WinRate",
    "as_reward",
    "implicit_rewards",
    "matrix_from_scores",
    "matrix_of",
    "mean_wins",
    "metrics_of",
    "score_groups",
    "why_unscored",
    "win_matrices",
]


def __getattr__(name: str) -> Any:
    if name == "scored":
        warnings.warn("rewards.scored is now rewards.score_groups", DeprecationWarning, stacklevel=2)
        return score_groups
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
