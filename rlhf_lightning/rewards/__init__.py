"""What gives responses a number: the protocol, reward models, simple rules; and how well a reward agrees with pairs."""

from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.length import LengthReward
from rlhf_lightning.rewards.model import ModelReward

__all__ = ["LengthReward", "ModelReward", "Reward"]
