"""Validation of on-policy methods: the policy's own answers to held-out prompts, scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lightning.data.batches.packing import local_totals
from rlhf_lightning.data.tokens.examples import Groups
from rlhf_lightning.lessons.experience import Experience, numbers
from rlhf_lightning.lessons.tokens import IntArray
from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.rounds.collect import Collector, group_of
from rlhf_lightning.types import RolloutBatch, ScoredGroup, Trained


class ValidationLoader:
    """Held-out prompts with fresh samples of the policy, the same random streams in every pass and every run.

    Every batch carries the score of each response; terms of the reward and what the reward counted are logged as
    ``val/reward/<term>`` and ``val/<name>``.

    Args:
        listed: this process's batches, as data set and rows; equally many on every process.
        collector: engine and reward.
        sync: gives the engine the policy's weights as they are; a collective call.
        module: the module that is validated.
        track: takes numbers into the mean that is logged under a name.
    """

    def __init__(
        self,
        listed: Sequence[tuple[Groups, IntArray]],
        collector: Collector,
        sync: Callable[[], None],
        module: Callable[[], Trained],
        track: Callable[[str, Tensor], None],
    ) -> None:
        self.listed, self.collector, self.sync, self.module = listed, collector, sync, module
        self.track = track

    def __len__(self) -> int:
        return len(self.listed)

    def __iter__(self) -> Iterator[RolloutBatch]:
        self.sync()
        self.collector.metrics()  # what training counted is no part of this pass
        for examples, rows in self.listed:
            found = self._answered(examples, rows)
            self._track_terms(found)
            yield self._batch(found)
        for name, value in self.collector.metrics().items():
            self.track(f"val/{name}", torch.tensor([value]))
        self.collector.clock.pop()

    def _answered(self, examples: Any, rows: IntArray) -> list[ScoredGroup]:
        groups = [group_of(examples, int(row)) for row in rows]
        seeds = [stream_seed("validation", group.index) for group in groups]
        return self.collector.scored([-1] * len(groups), groups, seeds, self.module())

    def _batch(self, found: list[ScoredGroup]) -> RolloutBatch:
        slots = len(found[0].score)
        experience = Experience.of(-1, 0, found, slots, everything=True)
        return experience.batch(np.arange(len(found)), local_totals(experience.examples))

    def _track_terms(self, found: list[ScoredGroup]) -> None:
        for name in found[0].terms:
            values = torch.tensor([numbers(scored.terms[name]) for scored in found]).flatten()
            self.track(f"val/reward/{name}", values[~values.isnan()])
