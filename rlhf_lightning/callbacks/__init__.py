"""Callbacks that log, save or refresh something during training. Each reads a step's outputs and batch."""

from rlhf_lightning.callbacks.draw import DrawRounds
from rlhf_lightning.callbacks.ema import EMAWeights
from rlhf_lightning.callbacks.gold import GoldReward
from rlhf_lightning.callbacks.hf_export import HFExport
from rlhf_lightning.callbacks.implicit_rewards import ImplicitRewards
from rlhf_lightning.callbacks.last_checkpoint import LastCheckpoint
from rlhf_lightning.callbacks.log_ratios import LogRatios
from rlhf_lightning.callbacks.nonfinite import NonFiniteError, NonFiniteStop
from rlhf_lightning.callbacks.phases import PhaseTimes
from rlhf_lightning.callbacks.reference_sync import ReferenceSync
from rlhf_lightning.callbacks.responses import ResponseStatistics
from rlhf_lightning.callbacks.rich_progress import AlignmentProgressBar
from rlhf_lightning.callbacks.rollout_files import RolloutFiles
from rlhf_lightning.callbacks.samples import PolicySamples
from rlhf_lightning.callbacks.score_normalizer import ScoreNormalizer
from rlhf_lightning.callbacks.step_seed import StepSeed
from rlhf_lightning.callbacks.throughput import Throughput
from rlhf_lightning.callbacks.token_shift import TokenShift
from rlhf_lightning.callbacks.verbosity_debias import VerbosityDebias

__all__ = [
    "AlignmentProgressBar",
    "DrawRounds",
    "EMAWeights",
    "GoldReward",
    "HFExport",
    "ImplicitRewards",
    "LastCheckpoint",
    "LogRatios",
    "NonFiniteError",
    "NonFiniteStop",
    "PhaseTimes",
    "PolicySamples",
    "ReferenceSync",
    "ResponseStatistics",
    "RolloutFiles",
    "ScoreNormalizer",
    "StepSeed",
    "Throughput",
    "TokenShift",
    "VerbosityDebias",
]
