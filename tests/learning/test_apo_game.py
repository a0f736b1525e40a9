"""APO's game in the tiny world: scores that its reward models give to samples of a policy that leaves them behind."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from rlhf_lightning.cli import game
from rlhf_lightning.rewards import ModelReward
from rlhf_lightning.types import Sample, SampleGroup
from tests.learning.claims import json_lines

pytestmark = pytest.mark.slow
#: Steps of the policy that go far, and a reward model that knows little beforehand.
OPTIONS = (
    "experiment=apo_tiny",
    "game.rounds=3",
    "policy.optimizer.lr=3e-4",
    "scorer.data.source.sources.annotated.size=512",
    "logger=none",
)


def accuracy(scorer: Path, samples: Path) -> float:
    """Share of a stage's pairs of a demonstration and a sample that a reward model orders so; standard error 0.02."""
    pairs = [row for file in sorted((samples / "rollouts" / "groups").glob("*.jsonl")) for row in json_lines(file)]
    groups = [
        SampleGroup(row["prompt_ids"], [Sample(ids, [0.0] * len(ids), "stop") for ids in row["response_ids"]])
        for row in pairs
    ]
    scores = ModelReward(path=str(scorer / "export" / "last"))(groups)
    return fmean(chosen > rejected for chosen, rejected in scores)


@pytest.mark.parametrize("seed", [1, 3])
def test_a_reward_model_that_stays_is_fooled_by_the_policy_that_it_trains(seed, tmp_path):
    """It learns to tell demonstrations from samples, and the policy to write what it takes for demonstrations.

    Measured: it prefers 0.73, 0.54 and 0.40 of the demonstrations, and 0.79, 0.65 and 0.53 with seed 3. That the
    reward model which follows the policy is fooled less does not show (docs/rounds.md), and is not claimed here.
    """
    assert game.main([*OPTIONS, f"seed={seed}", f"paths.output_dir={tmp_path}"]) == 0
    rounds = [tmp_path / f"round_{number}" for number in (1, 2, 3)]
    frozen = [accuracy(rounds[0] / "scorer", each / "samples") for each in rounds]
    assert frozen[0] > 0.6, frozen
    assert frozen[2] < frozen[0] - 0.15, frozen
