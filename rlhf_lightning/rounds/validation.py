"""Validation of on-policy methods: the policy's responses to held-out prompts, with their scores."""

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
        module: returns the module that is validated.
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
        self.collector.metrics()  # counts of training are no part of this pass
        for examples, rows in self.listed:
            entries = self._drawn(examples, rows)
            self._track_terms(entries)
            yield self._batch(entries)
        for name, value in self.collector.metrics().items():
            self.track(f"val/{name}", torch.tensor([value]))
        self.collector.clock.pop()

    def _drawn(self, examples: Any, rows: IntArray) -> list[ScoredGroup]:
        groups = [group_of(examples, int(row)) for row in rows]
        seeds = [stream_seed("validation", group.index) for group in groups]
        return self.collector.sample_and_score([-1] * len(groups), groups, seeds, self.module())

    def _batch(self, entries: list[ScoredGroup]) -> RolloutBatch:
        slots = len(entries[0].score)
        experience = Experience.of(-1, 0, entries, slots, everything=True)
        return experience.batch(np.arange(len(entries)), local_totals(experience.examples))

    def _track_terms(self, entries: list[ScoredGroup]) -> None:
        for name in entries[0].terms:
            values = torch.tensor([numbers(entry.terms[name]) for entry in entries]).flatten()
            self.track(f"val/reward/{name}", values[~values.isnan()])
