"""Exact evaluation in a world whose gold reward is known: reward, divergence from the base, calibration."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import stdev
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, Trainer

from rlhf_lightning.types import PackedBatch

#: Seed of the samples is this plus the number of the pass, so that passes of two runs draw alike.
_SEED = 7


class World(Protocol):
    """Interface of a world that can judge responses, such as ``rlhf_lightning.world.TinyEvaluator``."""

    max_new_tokens: int  #: maximum length of a response in tokens

    def prompts(self) -> list[list[int]]:
        """Held-out prompts."""

    def scores(self, prompt: Sequence[int], response: Sequence[int]) -> dict[str, float]:
        """Return ``reward``, and features by name."""

    def base_reward(self) -> float:
        """Return the mean gold reward of the base model on these prompts."""

    def divergence(self, policy: Any, batch: PackedBatch) -> torch.Tensor:
        """Return KL(policy || base) over each response, in nats; the responses are samples of the policy."""

    def held_out(self) -> tuple[PackedBatch, list[list[float]], list[list[float]]]:
        """Return responses of the base with their gold rewards and their log-probs under the base."""

    def batch(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]) -> PackedBatch:
        """Pack prompts with several responses each into one batch."""


class GoldReward(Callback):
    """Logs the true quality of a policy; the training method never sees these numbers.

    At each validation, several responses are sampled for every held-out prompt, and these metrics are logged:

    * ``val/gold/reward``: mean gold reward in points, and each feature by its name (``val/gold/correct``, ...);
    * ``val/gold/standard_error``: of that mean over the samples, in points;
    * ``val/gold/kl``: KL(policy || base) in nats a response, over the whole distributions along the policy's samples;
    * ``val/gold/length``: tokens of a sample;
    * ``val/gold/calibration``: Pearson's correlation, within prompts, of the log-ratio to the base (the implicit reward
      up to a constant of the prompt) with the gold reward, over responses that no method has trained on.

    Before training, the base's numbers are logged at step 0: its gold reward, and a divergence of 0. Nothing is logged
    if the model is not a policy (a reward model).

    Args:
        world: the world that judges responses.
        samples: total number of responses, spread evenly over the prompts; at least one each.
        batch_size: responses decoded together.
    """

    def __init__(self, world: World, samples: int = 512, batch_size: int = 512) -> None:
        if samples < 1 or batch_size < 1:
            raise ValueError(f"callbacks.gold.samples={samples} and .batch_size={batch_size} must be at least 1")
        self.world, self.samples, self.batch_size = world, samples, batch_size

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Log the numbers of the base, which every policy of this world starts from."""
        if trainer.global_step == 0 and _is_policy(pl_module) and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics({"val/gold/reward": self.world.base_reward(), "val/gold/kl": 0.0}, step=0)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Sample, judge and log."""
        if trainer.sanity_checking or not _is_policy(pl_module):
            return
        for name, values in {**self._judged(pl_module), **self._calibration(pl_module)}.items():
            pl_module.track(f"val/gold/{name}", torch.tensor(values, device=pl_module.device))

    def _judged(self, module: Any) -> dict[str, list[float]]:
        """Numbers of every sample by name."""
        prompts = self.world.prompts()
        each = math.ceil(self.samples / len(prompts))
        repeated = [prompt for prompt in prompts for _ in range(each)]
        responses = module.sample(
            repeated, seed=_SEED, batch_size=self.batch_size, max_new_tokens=self.world.max_new_tokens
        )
        numbers: dict[str, list[float]] = defaultdict(list)
        for prompt, response in zip(repeated, responses, strict=True):
            for name, value in self.world.scores(prompt, response).items():
                numbers[name].append(value)
        if len(responses) > 1:
            numbers["standard_error"] = [stdev(numbers["reward"]) / math.sqrt(len(responses))]
        numbers["length"] = [float(len(response)) for response in responses]
        grouped = [responses[start : start + each] for start in range(0, len(responses), each)]
        batch = self.world.batch(prompts, grouped)
        numbers["kl"] = self.world.divergence(module.policy, batch.to(module.device)).tolist()
        return numbers

    def _calibration(self, module: Any) -> dict[str, list[float]]:
        batch, gold, base = self.world.held_out()
        ratio = _log_probs(module, batch).reshape(len(gold), -1) - torch.tensor(base)
        return {"calibration": [_correlation(ratio.double(), torch.tensor(gold).double())]}


def _is_policy(module: Any) -> bool:
    return bool(getattr(module.policy, "needs_vocabulary", True))


@torch.no_grad()
def _log_probs(module: Any, batch: PackedBatch) -> torch.Tensor:
    """Summed log-probs of the policy, one per response, on the CPU."""
    log_probs: torch.Tensor = module.policy(batch.to(module.device)).sum()
    return log_probs.cpu()


def _correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Pearson's correlation after subtracting the mean of each row; 0 if one of the two does not vary."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    scale = float(x.norm() * y.norm())
    return float((x * y).sum()) / scale if scale > 0 else 0.0
