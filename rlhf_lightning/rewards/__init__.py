"""What gives responses a number: the protocol, models, simple rules; and how well a reward agrees with pairs."""

from rlhf_lightning.rewards.base import Reward, Scores, metrics_of, scored
from rlhf_lightning.rewards.composite import Composite
from rlhf_lightning.rewards.function import FunctionReward, as_reward
from rlhf_lightning.rewards.judge import JudgeReward
from rlhf_lightning.rewards.length import LengthReward
from rlhf_lightning.rewards.log_prob import LogProbReward
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.rewards.process import ProcessReward
from rlhf_lightning.rewards.text_reward import TextReward

__all__ = [
    "Composite",
    "FunctionReward",
    "JudgeReward",
    "LengthReward",
    "LogProbReward",
    "ModelReward",
    "ProcessReward",
    "Reward",
    "Scores",
    "TextReward",
    "as_reward",
    "metrics_of",
    "scored",
]
