"""Contents of a rollout: its samples, those that are trained on, and the episodes of credit assignment."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning.data import ProcessShare
from rlhf_lightning.types import RolloutOptions, SampleGroup
from tests.helpers.fake_rollouts import FakeEngine, Sum, looped
from tests.helpers.online import module_of, online


class NoneFor(Sum):
    """No score for responses of one token."""

    def __call__(self, groups: Sequence[SampleGroup]) -> list[list[float | None]]:
        return [
            [None if len(ids) == 1 else score for ids, score in zip(group.responses, row, strict=True)]
            for group, row in zip(groups, super().__call__(groups), strict=True)
        ]


def first(data):
    return next(iter(data.train_dataloader()))


def spans(batch) -> list[list[int]]:
    """Ids of each response, [] for a slot that is not trained on."""
    return [batch.ids[start:end].tolist() for start, end in batch.response_span.tolist()]


def test_numbers_belong_to_their_tokens():
    """Each field in the order of the batch, whatever order the step's groups are in."""
    data, module = looped(RolloutOptions(group_size=2, minibatches=2))
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 2
    for batch in batches:
        assert batch.old_log_probs.tolist() == batch.ids[batch.target].tolist()
        assert batch.score.tolist() == [sum(ids) for ids in spans(batch)]
        assert batch.advantage.tolist() == [sum(ids) for ids in spans(batch) for _ in ids]
        assert set(batch.rollout_log_probs.tolist()) == {-0.5}
        assert batch.truncated.tolist() == [len(ids) == 4 for ids in spans(batch)]
    seen = torch.cat([batch.index for batch in batches]).tolist()
    assert len(set(seen)) == 8
    assert module.episodes[0].group.tolist() == [at // 2 for at in range(16)]


def test_moments_are_those_of_the_whole_step():
    data, _ = looped(RolloutOptions(group_size=2), process_share=None)
    batch = first(data)
    assert batch.advantage_moments[0] == pytest.approx(float(batch.advantage.mean()))
    assert batch.advantage_moments[1] == pytest.approx(float(batch.advantage.std(correction=0)))


@pytest.mark.parametrize(("processes", "stage"), [(6, "fit"), (6, "validate"), (5, None)])
def test_fewer_validation_prompts_than_processes_are_refused_before_weights_load(processes, stage):
    """Five of them; fails when it is found out in the first validation, on the process that has none."""
    module = module_of()
    data = online(module, None, batch_size=12, process_share=ProcessShare(1, 0, processes))
    if processes == 5:
        data.setup(stage)
    else:
        with pytest.raises(ValueError, match="5 validation prompts cannot give each of 6 processes at least one"):
            data.setup(stage)
    assert module.policy is None


def test_unscored_responses_take_no_part():
    """They have neither tokens nor a place in the denominators; credit assignment sees nan."""
    data, module = looped(RolloutOptions(group_size=3), reward=NoneFor())
    batch = first(data)
    episodes = module.episodes[0]
    unknown = episodes.reward.isnan()
    assert 0 < int(unknown.sum()) < len(unknown)
    assert (episodes.length == 0).tolist() == unknown.tolist()
    assert batch.totals.slot_tokens == tuple(sum(len(ids) for ids in spans(batch)[slot::3]) for slot in range(3))
    assert not any(len(ids) == 1 for ids in spans(batch))
    assert data.metrics["train/reward/unscored"] == pytest.approx(float(unknown.float().mean()))


class Sometimes(Sum):
    """Scores nothing in some of its calls; counts them."""

    name = "sometimes"

    def __init__(self, *silent: int) -> None:
        self.silent, self.calls = silent, 0

    def __call__(self, groups):
        self.calls += 1
        scores = super().__call__(groups)
        return [[None] * len(row) for row in scores] if self.calls - 1 in self.silent else scores

    def metrics(self) -> dict[str, float]:
        return {"reward/calls": float(self.calls)}


def test_a_rollout_without_any_score_is_skipped_and_counted():
    """The next prompts take its place; credit assignment, which has a state, never sees it."""
    data, module = looped(reward=Sometimes(0, 1))
    loader = data.train_dataloader()
    batch = next(iter(loader))
    assert (batch.rollout, loader.number, loader.cursor) == (2, 3, 12)
    assert len(module.episodes) == 1
    assert data.metrics["train/rollout/skipped"] == 2
    assert set(batch.index.tolist()) == set(data.stream.take(8, 4).tolist())


def test_too_many_empty_rollouts_in_a_row_end_the_run():
    data, _ = looped(RolloutOptions(group_size=2, max_empty=3), reward=Sometimes(0, 1, 3, 4, 5))
    batches = iter(data.train_dataloader())
    assert next(batches).rollout == 2
    message = r"rollouts 3 to 5 have nothing to learn from: the reward 'sometimes' scored no .*max_empty=3 end"
    with pytest.raises(RuntimeError, match=message):
        next(batches)


def test_what_was_drawn_is_read_again_until_it_has_ended_the_run(tmp_path):
    """A killed run finds rollouts that were skipped and what the reward counted; one that gave up asks again."""

    def run(reward, **options):
        data, module = looped(RolloutOptions(group_size=2, **options), reward=reward)
        module.tokenizer = SimpleNamespace(decode=lambda ids, **_: str(ids))
        data.folder = tmp_path
        return data, next(iter(data.train_dataloader()))

    one, first_batch = run(Sometimes(0))
    reward = Sometimes()
    other, second_batch = run(reward, max_empty=9)
    assert reward.calls == 0
    clock = re.compile("train/(time|throughput)/")
    one, other = ({name: x for name, x in data.metrics.items() if not clock.match(name)} for data in (one, other))
    assert one == other
    assert (other["train/rollout/skipped"], other["train/reward/calls"]) == (1, 2)
    assert first_batch.ids.tolist() == second_batch.ids.tolist()
    with pytest.raises(RuntimeError, match="rollout 0 has nothing to learn from"):
        run(Sometimes(), max_empty=1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["00000.empty.jsonl", "00001.jsonl"]
    assert run(Sometimes(), max_empty=1)[1].rollout == 0


def test_masked_truncated_responses_count_in_statistics_only():
    """Their reward is known to credit assignment; their tokens are in no batch."""
    data, module = looped(RolloutOptions(group_size=3, mask_truncated=True))
    batch = first(data)
    episodes = module.episodes[0]
    assert not episodes.reward.isnan().any()
    assert episodes.truncated.any()
    assert (episodes.length == 0).tolist() == episodes.truncated.tolist()
    assert not any(len(ids) == 4 for ids in spans(batch))


def test_everything_cut_off_names_the_fix():
    engine = FakeEngine(lambda seed, j: [1, 2, 3, 4])
    data, _ = looped(RolloutOptions(group_size=2, mask_truncated=True), engine)
    with pytest.raises(RuntimeError, match=r"rollouts 0 to 4 .*mask_truncated=true: raise rollout\.max_new_tokens"):
        first(data)


def test_keep_trains_on_the_first_samples_after_all_were_scored():
    class Votes(Sum):
        """Number of the group's responses that equal this one: all of them must be there."""

        def __call__(self, groups):
            return [[float(group.responses.count(ids)) for ids in group.responses] for group in groups]

    engine = FakeEngine(lambda seed, j: [5] if j < 3 else [6])
    data, module = looped(RolloutOptions(group_size=5, keep=2), engine, Votes())
    batch = first(data)
    assert batch.slots == 2
    assert batch.score.tolist() == [3.0] * 8
    assert len(module.episodes[0].reward) == 8
    assert data.metrics["train/reward/mean"] == pytest.approx((3 * 3 + 2 * 2) / 5)  # over all that were drawn


def test_greedy_baseline():
    """One number a prompt: the reward of the response [7], which no batch holds."""
    engine = FakeEngine()
    data, module = looped(RolloutOptions(group_size=1, greedy_baseline=True, top_p=0.9), engine)
    batch = first(data)
    assert module.episodes[0].baseline.tolist() == [7.0] * 4
    assert [7] not in spans(batch)
    assert [(sampling.temperature, sampling.top_p) for _, sampling in engine.calls] == [(1.0, 0.9), (0.0, 1.0)]


@pytest.mark.parametrize(
    ("ids", "expected", "truncated"),
    [
        ([9, 1, 9, 2], [9, 1, 9], False),  # the first 9 stands before truncate_from; one off would give [9]
        ([1, 9, 2, 3], [1, 9], False),
        ([9, 1, 2, 3], [9, 1, 2, 3], True),  # without that token the response counts as cut off
    ],
)
def test_truncate_after(ids, expected, truncated):
    data, module = looped(
        RolloutOptions(group_size=1, truncate_after=9, truncate_from=1), FakeEngine(lambda seed, j: ids)
    )
    batch = first(data)
    assert spans(batch) == [expected] * 4
    assert module.episodes[0].truncated.tolist() == [truncated] * 4
    assert len(batch.rollout_log_probs) == 4 * len(expected)


def test_process_rewards_reach_credit_assignment():
    """One number a token; nan where no step ends."""

    class Steps(Sum):
        def step_reward(self, groups):
            return [[[float("nan")] * (len(ids) - 1) + [1.5] for ids in group.responses] for group in groups]

    data, module = looped(reward=Steps())
    first(data)
    steps, lengths = module.episodes[0].step_reward, module.episodes[0].length
    assert len(steps.token) == int(lengths.sum())
    assert steps.token[lengths.cumsum(0) - 1].tolist() == [1.5] * 8
    assert int(steps.token.isnan().sum()) == int(lengths.sum()) - 8


def test_terms_and_counts_are_logged():
    class Composite(Sum):
        name = "composite"

        def terms(self, groups):
            total = super().__call__(groups)
            return {"sum": total, "cost": [[2.0] * len(row) for row in total]}

        def combine(self, terms):
            return [
                [a - b for a, b in zip(*rows, strict=True)] for rows in zip(terms["sum"], terms["cost"], strict=True)
            ]

        def metrics(self):
            return {"judge/failed": 0.25}

    data, module = looped(reward=Composite())
    batch = first(data)
    assert batch.score.tolist() == [sum(ids) - 2.0 for ids in spans(batch)]
    assert module.episodes[0].terms["cost"].tolist() == [2.0] * 8
    metrics = data.metrics
    assert metrics["train/reward/cost"] == 2.0
    assert metrics["train/reward/mean"] == pytest.approx(metrics["train/reward/sum"] - 2.0)
    assert metrics["train/judge/failed"] == 0.25
    assert metrics["train/seen"] == 1.0
    assert {f"train/time/{name}" for name in ("generate", "reward", "score", "credit", "sync")} <= metrics.keys()


def test_a_reward_that_asks_the_policy_is_given_the_module():
    class Asks(Sum):
        policy = None

    reward = Asks()
    data, module = looped(reward=reward)
    first(data)
    assert reward.policy is module


def test_validation_uses_its_own_samples_and_streams():
    """Neither the greedy baseline nor the filter; the same samples in every pass."""
    engine = FakeEngine()
    options = RolloutOptions(
        group_size=3, validation_samples=2, validation_temperature=0.5, greedy_baseline=True, dynamic_filter=True
    )
    data, _ = looped(options, engine, validation=0.25, loading={"eval_batch_size": 2})
    passes = [[batch.ids.tolist() for batch in data.val_dataloader()] for _ in range(2)]
    assert passes[0] == passes[1]
    assert len(passes[0]) == len(data.val_dataloader()) == -(-len(data.val_examples) // 2)
    assert {sampling.temperature for _, sampling in engine.calls} == {0.5}
    batch = next(iter(data.val_dataloader()))
    assert batch.slots == 2
    assert batch.score.tolist() == [sum(ids) for ids in spans(batch)]
    assert batch.advantage is None


def test_the_greedy_response_is_a_row_of_its_own_and_is_read_again(tmp_path):
    """A draw like the first one; the file of an earlier version, which had no such row, is drawn again."""

    def run():
        engine = FakeEngine()
        data, module = looped(RolloutOptions(group_size=2, greedy_baseline=True), engine)
        module.tokenizer = SimpleNamespace(decode=lambda ids, **_: str(ids))
        data.folder = tmp_path
        return engine, module, first(data)

    engine, module, batch = run()
    assert len(engine.calls) == 2
    file = tmp_path / "00000.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["draw"] for row in rows] == [0, 0, 1] * 4
    assert [row["source"] for row in rows] == ["policy"] * 12
    assert [row["baseline"] for row in rows] == [7.0] * 12
    assert [row["trained"] for row in rows] == [True, True, False] * 4
    again, resumed, other = run()
    assert again.calls == []
    assert resumed.episodes[0].baseline.tolist() == module.episodes[0].baseline.tolist() == [7.0] * 4
    assert other.ids.tolist() == batch.ids.tolist()
    older = [{k: v for k, v in row.items() if k not in ("draw", "source")} for row in rows if not row["draw"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in older))
    redrawn, _, third = run()
    assert len(redrawn.calls) == 2
    assert third.ids.tolist() == batch.ids.tolist()
