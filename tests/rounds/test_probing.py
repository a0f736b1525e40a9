"""Each rollout says how far the engine's log-probs lie from the trainer's, and a run stops above the bound."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.lessons.experience import Experience
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rollout import TransformersEngine
from rlhf_lightning.rounds.probing import measured
from rlhf_lightning.types import RolloutOptions, Sample, SampleGroup, Sampling, ScoredGroup
from tests.helpers.fake_rollouts import FakeEngine, looped

PROMPTS = [[1, 50, 60], [1, 70]]


class Silent(FakeEngine):
    """Cannot say how likely its tokens were."""

    def sample(self, ids):
        return Sample(ids, [], "stop")


def _experience(policy, temperature=0.7, change=0.0):
    """A rollout of a real policy; ``change`` is added to the log-probs of the second token of each response."""
    engine = TransformersEngine(None)
    engine.sync(policy, 0)
    groups = engine.generate(PROMPTS, Sampling(max_new_tokens=6, temperature=temperature), n=2, seeds=[1, 2])
    kept = []
    for position, (prompt, samples) in enumerate(zip(PROMPTS, groups, strict=True)):
        told = [Sample(s.ids, [x + change * (at == 1) for at, x in enumerate(s.log_probs)], s.finish) for s in samples]
        kept.append(ScoredGroup(position, SampleGroup(prompt, told), [0.0, 1.0]))
    return Experience.of(0, 2, kept, 2)


@pytest.fixture(scope="module")
def policy():
    return ModelBuilder(TinyRandom(initializer_range=0.3), None, "none")().policy


def _measured(experience, policy, rank=0, temperature=0.7):
    return measured(
        experience, policy, temperature=temperature, score_temperature=1.0, rank=rank, forward=torch.no_grad
    )


@pytest.mark.parametrize("rank", range(4))
def test_one_response_of_a_process_is_computed_where_the_method_scores_none(policy, rank):
    experience = _experience(policy)
    gaps = _measured(experience, policy, rank)
    assert gaps["max"] < 1e-4
    changed = _measured(_experience(policy, change=0.5), policy, rank)
    length = int(experience.lengths[rank])
    assert changed["max"] == pytest.approx(0.5, abs=1e-4)
    assert changed["mean"] == pytest.approx(0.5 / length, abs=1e-4)
    assert _measured(experience, policy, rank, temperature=1.0)["mean"] > 0.05  # another temperature is a gap


def test_every_token_counts_where_the_method_scores_them():
    data, _ = looped(RolloutOptions(group_size=2))
    batch = next(iter(data.train_dataloader()))
    gap = (batch.old_log_probs + 0.5).abs()  # the engine says -0.5, the module a token's id
    assert data.metrics["train/mismatch/mean_gap"] == pytest.approx(float(gap.mean()))
    assert data.metrics["train/mismatch/max_gap"] == pytest.approx(float(gap.max()))


def test_a_run_stops_above_the_bound():
    engine = FakeEngine()
    engine.max_gap = 1.0
    data, _ = looped(RolloutOptions(group_size=2), engine)
    with pytest.raises(RuntimeError, match=r"rollout=fake .* rollout.max_gap=1.0"):
        next(iter(data.train_dataloader()))


def test_an_engine_without_log_probs_has_no_gap():
    data, _ = looped(RolloutOptions(group_size=2), Silent())
    next(iter(data.train_dataloader()))
    assert not [name for name in data.metrics if "gap" in name]
