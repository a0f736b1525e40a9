"""What gives responses a number: the protocol, models, simple rules; and how well a reward agrees with pairs."""

from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.judge import JudgeReward
from rlhf_lightning.rewards.length import LengthReward
from rlhf_lightning.rewards.log_prob import LogProbReward
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.rewards.process import ProcessReward

__all__ = ["JudgeReward", "LengthReward", "LogProbReward", "ModelReward", "ProcessReward", "Reward"]
