"""Processes with unequal work: fewer prompts, nothing to judge, nothing to learn from. They must not wait for ever."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.callbacks import PolicySamples
from rlhf_lightning.credit import remax
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.methods import PolicyGradient
from rlhf_lightning.methods.shaping import RewardShaping
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer
from rlhf_lightning.rewards import RatingJudge
from rlhf_lightning.rewards.base import evaluated
from rlhf_lightning.strategies import FSDP2Strategy
from rlhf_lightning.types import RolloutOptions, SampleGroup
from tests.helpers.critics import ppo_of
from tests.helpers.jobs import in_processes
from tests.helpers.online import LowBytes, letters, module_of, trajectory
from tests.trajectory.test_online_invariance import assert_same, samples

SGD = partial(torch.optim.SGD, lr=0.05)
STRATEGIES = pytest.mark.parametrize("strategy", ["ddp", FSDP2Strategy], ids=["ddp", "fsdp"])


class PolicyJudge(RatingJudge):
    """The policy judges, at temperature 0; any verdict is a rating: its share of letters, in thirds."""

    def __call__(self, groups: Sequence[SampleGroup]) -> list[list[float | None]]:
        verdicts = iter(self._answers([self._context(group, ids) for group in groups for ids in group.responses]))
        return [[round(3 * letters("", next(verdicts) or "")) / 3 for _ in group.samples] for group in groups]


def judge() -> PolicyJudge:
    question = "{{ item.prompt }}{{ sample.output_text }}"
    return PolicyJudge(byte_tokenizer(), question=question, writing={"max_tokens": 3}, name="own")


def filtered() -> PolicyGradient:
    """Refills of any number of prompts, greedy responses to judge too; statistics of the first samples."""
    options = RolloutOptions(group_size=3, minibatches=2, greedy_baseline=True, dynamic_filter=True, max_refills=4)
    shaping = RewardShaping(scale="ref", center=True, ref_samples=30)
    return module_of(options, advantage=remax, credit={"shaping": shaping}, optimizer=SGD)


def indexed_samples(table: Path) -> list[tuple[int, str]]:
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    return [(row["index"], row["response"]) for row in rows]


@STRATEGIES
def test_the_policy_judges(tmp_path, strategy):
    """A process without a prompt of a refill, and with fewer validation prompts than its sample table has room for."""

    def run(folder: Any, **options: Any) -> dict[str, Any]:
        reward, table = judge(), PolicySamples(pack, prompts=6, each=2, max_new_tokens=4)
        table.scorer = partial(evaluated, reward)
        return trajectory(filtered, folder, reward, callbacks=[table], **options)

    single, two = tmp_path / "single", tmp_path / "two"
    one = run(single)
    parallel = in_processes(2, two, run, two, devices=2, strategy=strategy)
    drawn = samples(single)
    assert any(len({position for position, *_ in rollout}) % 2 for rollout in drawn), (
        "no process was ever without a prompt"
    )
    assert drawn == samples(two)
    tables = [{file.name: indexed_samples(file) for file in (folder / "samples").iterdir()} for folder in (single, two)]
    assert len(tables[0]) == 2
    assert tables[0] == tables[1], "a table depends on which process responds to a prompt"
    assert_same(one, parallel, 2e-4)


class Rare(LowBytes):
    """Scores responses to one prompt of six."""

    name = "rare"

    def __call__(self, groups: Sequence[SampleGroup]) -> list[list[float | None]]:
        return [
            [self.score(s) if group.columns["number"] % 6 == 1 else None for s in group.samples] for group in groups
        ]


@STRATEGIES
@pytest.mark.parametrize(
    "make",
    [pytest.param(module_of, id="grpo", marks=pytest.mark.slow), pytest.param(partial(ppo_of, "separate"), id="ppo")],
)
def test_nothing_to_learn_from(tmp_path, make, strategy):
    """Micro-batches, and whole steps, of which no response has a score."""
    make = partial(make, optimizer=SGD)
    one = trajectory(make, tmp_path / "single", Rare())
    two = tmp_path / "two"
    parallel = in_processes(2, two, trajectory, make, two, Rare(), devices=2, strategy=strategy)
    assert samples(tmp_path / "single") == samples(two)
    assert_same(one, parallel, 2e-4)
