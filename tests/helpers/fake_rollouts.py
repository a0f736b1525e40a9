"""An engine, a reward and a module of the loop's that compute nothing: what the loop does with them is plain to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from rlhf_lightning.data.batches.plan import ProcessShare
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.types import Credit, Episodes, PackedBatch, RolloutOptions, Sample, SampleGroup, Sampling
from tests.helpers.online import prompts


class FakeEngine:
    """Response ``j`` to a prompt is a function of its seed and ``j``; greedy: ``[7]``."""

    name, exact, frozen, max_new_tokens, min_new_tokens, max_gap = "fake", True, False, 4, 0, None

    sources = frozenset({"policy"})

    def __init__(self, respond: Callable[[int, int], list[int]] | None = None) -> None:
        self.respond = respond or (lambda seed, j: [1 + (seed >> j) % 2] * (1 + (seed + j) % 4))
        self.calls: list[tuple[int, Sampling]] = []
        self.synced: list[int] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        self.calls.append((len(prompts), sampling))
        if sampling.temperature == 0:
            return [[Sample([7], [-0.5], "stop")] for _ in prompts]
        return [[self.sample(self.respond(seed, j)) for j in range(n)] for seed in seeds]

    def sample(self, ids: list[int]) -> Sample:
        return Sample(ids, [-0.5] * len(ids), "length" if len(ids) >= self.max_new_tokens else "stop")

    def sync(self, policy: Any, version: int) -> None:
        self.synced.append(version)

    def close(self) -> None:
        self.closed = True


class Sum:
    """Sum of a response's tokens."""

    name = "sum"

    def __call__(self, groups: Sequence[SampleGroup]) -> list[list[float | None]]:
        return [[float(sum(sample.ids)) for sample in group.samples] for group in groups]


class FakeModule(nn.Module):
    """Gives every token its own id as a score, and its response's reward as advantage; keeps what it was shown."""

    required_scores = frozenset({"old_log_probs"})
    device = torch.device("cpu")
    policy = None
    temperature = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout()
        self.episodes: list[Episodes] = []
        self.batches: list[PackedBatch] = []

    def scores(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(batch)
        return {"old_log_probs": batch.ids[batch.target].float()}

    def credit(self, episodes: Episodes) -> Credit:
        self.episodes.append(episodes)
        layout = episodes.tokens["old_log_probs"]
        return Credit({"advantage": layout.with_token(episodes.reward.nan_to_num()[layout.sequence])}, {"seen": 1.0})

    def trained_parameters(self) -> Any:
        return iter([("weight", torch.ones(2))])


def looped(
    options: RolloutOptions | None = None,
    engine: Any = None,
    reward: Any = None,
    process_share: ProcessShare | None = None,
    count: int = 12,
    **settings: Any,
) -> tuple[OnlineData, FakeModule]:
    """A loop over twelve prompts, four a step, without a Trainer."""
    source = AlignmentDataModule(
        prompts(count), kind="prompt", process_share=process_share, **{"batch_size": 4, "seed": 3} | settings
    )
    data = OnlineData(source, engine or FakeEngine(), reward or Sum(), options or RolloutOptions(group_size=2))
    module = FakeModule()
    data.attach(module)
    data.setup()
    return data, module
