"""One LightningModule per data flow."""

from rlhf_lightning.methods.actor_critic import PPO
from rlhf_lightning.methods.base import AlignmentModule
from rlhf_lightning.methods.contrastive import Contrastive
from rlhf_lightning.methods.density_ratio import DensityRatio
from rlhf_lightning.methods.distillation import ContextDistillation, KnowledgeDistillation
from rlhf_lightning.methods.judge import Judge
from rlhf_lightning.methods.judged import Judged
from rlhf_lightning.methods.kl import KLPenalty
from rlhf_lightning.methods.lagrangian import CriticCreditOptions, Multiplier
from rlhf_lightning.methods.mismatch import Mismatch
from rlhf_lightning.methods.policy_gradient import PolicyGradient
from rlhf_lightning.methods.policy_options import (
    ActorLossOptions,
    CreditOptions,
    PolicyLossOptions,
    ValueLossOptions,
)
from rlhf_lightning.methods.preference import Preference
from rlhf_lightning.methods.ranking import Ranked
from rlhf_lightning.methods.rating import Rating
from rlhf_lightning.methods.representation import ContrastedModels, Instructed, InstructedRepresentation
from rlhf_lightning.methods.reward import CostModel, RankedRewardModel, RewardModel
from rlhf_lightning.methods.scoring import ScoringModule
from rlhf_lightning.methods.shaping import RewardShaping
from rlhf_lightning.methods.supervised import Supervised
from rlhf_lightning.methods.unpaired import Unpaired
from rlhf_lightning.methods.value_based import ValueBased

__all__ = [
    "PPO",
    "ActorLossOptions",
    "AlignmentModule",
    "ContextDistillation",
    "ContrastedModels",
    "Contrastive",
    "CostModel",
    "CreditOptions",
    "CriticCreditOptions",
    "DensityRatio",
    "Instructed",
    "InstructedRepresentation",
    "Judge",
    "Judged",
    "KLPenalty",
    "KnowledgeDistillation",
    "Mismatch",
    "Multiplier",
    "PolicyGradient",
    "PolicyLossOptions",
    "Preference",
    "Ranked",
    "RankedRewardModel",
    "Rating",
    "RewardModel",
    "RewardShaping",
    "ScoringModule",
    "Supervised",
    "Unpaired",
    "ValueBased",
    "ValueLossOptions",
]
