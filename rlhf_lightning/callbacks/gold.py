"""Exact evaluation in a world whose gold reward is known: reward, divergence from the base, calibration."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, Trainer

from rlhf_lightning.types import PackedBatch

#: Seed of the samples is this plus the number of the pass, so that passes of two runs draw alike.
_SEED = 7


class World(Protocol):
    """A world that can judge; ``rlhf_lightning.world.TinyEvaluator`` is one."""

    max_new_tokens: int  #: most tokens of a response

    def prompts(self) -> list[list[int]]:
        """Held-out prompts."""

    def scores(self, prompt: Sequence[int], response: Sequence[int]) -> dict[str, float]:
        """``reward``, and features by name."""

    def base_reward(self) -> float:
        """Mean gold reward of the base on these prompts."""

    def divergence(self, policy: Any, batch: PackedBatch) -> torch.Tensor:
        """KL(policy || base) over each response, in nats; the responses are samples of the policy."""

    def held_out(self) -> tuple[PackedBatch, list[list[float]], list[list[float]]]:
        """Responses of the base with their gold rewards and their log-probs under the base."""

    def batch(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]) -> PackedBatch:
        """Prompts with several responses each, as one batch."""


class GoldReward(Callback):
    """Logs what a policy is really worth; the method that trains it never sees any of this.

    At each validation the policy answers every held-out prompt several times, and these are logged:

    * ``val/gold/reward``: mean gold reward in points, and each feature by its name (``val/gold/correct``, ...);
    * ``val/gold/kl``: KL(policy || base) in nats a response, over the whole distributions along the policy's samples;
    * ``val/gold/length``: tokens of a sample;
    * ``val/gold/calibration``: how well the log-ratio to the base, which is the implicit reward up to a constant of the
      prompt, predicts the gold reward of answers that no method has trained on: Pearson's correlation within prompts.

    Before training the base's own numbers are logged at step 0: its gold reward, and no divergence. A module whose
    model is no policy (a reward model) is left alone.

    Args:
        world: who judges.
        samples: responses in all, spread evenly over the prompts; at least one each.
        batch_size: responses decoded together.
    """

    def __init__(self, world: World, samples: int = 512, batch_size: int = 512) -> None:
        if samples < 1 or batch_size < 1:
            raise ValueError(f"callbacks.gold.samples={samples} and .batch_size={batch_size} must be at least 1")
        self.world, self.samples, self.batch_size = world, samples, batch_size

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Log where every policy of this world starts."""
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
        found: dict[str, list[float]] = defaultdict(list)
        for prompt, response in zip(repeated, responses, strict=True):
            for name, value in self.world.scores(prompt, response).items():
                found[name].append(value)
        found["length"] = [float(len(response)) for response in responses]
        grouped = [responses[start : start + each] for start in range(0, len(responses), each)]
        batch = self.world.batch(prompts, grouped)
        found["kl"] = self.world.divergence(module.policy, batch.to(module.device)).tolist()
        return found

    def _calibration(self, module: Any) -> dict[str, list[float]]:
        batch, gold, base = self.world.held_out()
        ratio = _scored(module, batch).reshape(len(gold), -1) - torch.tensor(base)
        return {"calibration": [_correlation(ratio.double(), torch.tensor(gold).double())]}


def _is_policy(module: Any) -> bool:
    return bool(getattr(module.policy, "needs_vocabulary", True))


@torch.no_grad()
def _scored(module: Any, batch: PackedBatch) -> torch.Tensor:
    """Summed log-probs of the policy, one a response, on the CPU."""
    scored: torch.Tensor = module.policy(batch.to(module.device)).sum()
    return scored.cpu()


def _correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Pearson's correlation after the mean of each row is taken away; 0 where one of the two does not vary."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    scale = float(x.norm() * y.norm())
    return float((x * y).sum()) / scale if scale > 0 else 0.0
