"""Groups of the data beside those of rounds: how many, which ones, and the same ones after a resume."""

from __future__ import annotations

import io
import json
from functools import partial

import numpy as np
import pytest
import torch

from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.lessons import SelectLesson
from rlhf_lightning.lessons.replay import Replay, prompt_tokens
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.types import Example
from tests.helpers.fake_rollouts import Sum
from tests.helpers.online import prompts
from tests.helpers.rounds import rounds_of
from tests.lessons.test_select import Learner, Silent, Tied, looped, spans

PROMPTS = prompts(24)


def pairs(count: int = 40) -> list[Example]:
    """A pair for each prompt of rounds, then pairs of other prompts."""
    prompt_ids = [one.prompt for one in PROMPTS] + [[200, number] for number in range(count)]
    return [Example(prompt, [[9, n + 1], [8, n + 1]], row=f"pairs:{n}") for n, prompt in enumerate(prompt_ids[:count])]


def replay_of(share: float, examples: list[Example] | None = None, seed: int = 0) -> Replay:
    data = AlignmentDataModule(examples if examples is not None else pairs(), kind="preference", batch_size=4)
    return Replay(share, data, seed)


def replayed(share: float, engine=None, examples=None, **options):
    """Rounds of eight prompts in two steps, with groups of the data."""
    source = AlignmentDataModule(PROMPTS, kind="prompt", batch_size=4, seed=3)
    lesson = partial(SelectLesson, kind="preference", seed=3, replay=replay_of(share, examples))
    data = OnlineData(source, engine or Silent(), Sum(), rounds_of(**options), None, lesson=lesson)
    data.attach(Learner())
    data.setup()
    return data


def offline(batch) -> list[int]:
    """Numbers of the pairs that are the data's."""
    return [chosen[1] - 1 for chosen, other in zip(spans(batch)[::2], spans(batch)[1::2], strict=True) if other[0] == 8]


@pytest.mark.parametrize(("share", "each"), [(0.5, 8), (0.2, 2), (0.6, 12)])
def test_the_share_is_met_and_prompts_are_others(share, each):
    data = replayed(share)
    batches = iter(data.train_dataloader())
    for number in range(3):
        steps = [next(batches), next(batches)]
        rows = [row for batch in steps for row in offline(batch)]
        assert len(rows) == len(set(rows)) == each
        assert sum(map(len, steps)) == 8 + each
        assert data.metrics["train/round/replay_share"] == pytest.approx(share)
        drawn = data.stream.take(number * 8, 8).tolist()
        assert not set(rows) & set(drawn), "rows 0 to 23 have the prompts of rounds"
        for batch in steps:
            assert batch.reference_log_probs.tolist() == (-batch.ids[batch.target]).tolist()
            assert batch.margin is None, "the data has none"


def test_what_one_round_is_short_of_by_rounding_the_next_one_brings():
    """Three pairs of .7 groups each: 1, 0, 1, 1 ... and never a row twice in a pass."""
    replay = replay_of(0.25)
    replay.prepare(set())
    counts = [len(replay.take(2, set())) for _ in range(9)]
    assert counts == [1, 0, 1, 1, 0, 1, 1, 0, 1]
    assert replay.made == 18
    assert replay.replayed == 6


def test_no_row_comes_twice_in_a_pass():
    replay = replay_of(0.5)
    replay.prepare(set())
    taken = [replay.take(8, set()).tolist() for _ in range(15)]
    flat = [row for rows in taken for row in rows]
    for start in (0, 40, 80):
        assert sorted(flat[start : start + 40]) == list(range(40))
    assert flat[:40] != flat[40:80]
    assert all(len(set(rows)) == 8 for rows in taken)


def test_a_round_over_the_end_of_a_pass_has_no_row_twice():
    replay = replay_of(0.5)
    replay.prepare(set())
    for _ in range(20):
        rows = replay.take(27, set()).tolist()
        assert len(set(rows)) == 27


def test_prompts_without_a_group_count_as_drawn():
    """Of eight prompts three have pairs; three pairs of the data come along, of none of the eight."""
    probe = replayed(0.5)
    engine = Tied([probe.stream.seeds(position, 1)[0] for position in (0, 3, 5)])
    data = replayed(0.5, engine)
    steps = iter(data.train_dataloader())
    rows = [row for _ in range(2) for row in offline(next(steps))]
    assert len(rows) == 3
    assert not set(rows) & set(data.stream.take(0, 8).tolist())


def test_replay_stands_beside_rounds_that_are_carried_along():
    data = replayed(0.5, carry="previous", minibatches=1)
    batches = list(data.train_dataloader())
    assert [(len(batch), len(offline(batch))) for batch in batches[:2]] == [(8, 4), (16, 8)]


@pytest.mark.parametrize(("carry", "rounds", "share"), [("previous", 2, 0.5), ("all", 6, 0.2)])
def test_prompts_of_rounds_that_are_carried_along_are_not_replayed(carry, rounds, share):
    """The data's pair of a prompt that is trained on again would stand beside the policy's own."""
    data = replayed(share, carry=carry, minibatches=1)
    for number, batch in enumerate(data.train_dataloader()):
        earliest = max(0, number + 1 - rounds)
        trained = data.stream.take(4 * earliest, 4 * (number + 1 - earliest)).tolist()
        assert len(set(trained)) == len(trained)
        assert not set(offline(batch)) & set(trained), "rows 0 to 23 have the prompts of rounds"


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 5, 7])
def test_state_resumes_anywhere(taken):
    """Within a round its groups are held, at its end the place in the data; tokens of other rows are not."""
    options = {"inner_epochs": 2}
    expected = [(batch.ids.tolist(), batch.index.tolist()) for batch in replayed(0.4, **options).train_dataloader()]
    loader = replayed(0.4, **options).train_dataloader()
    iterator = iter(loader)
    for _ in range(taken):
        next(iterator)
    stored = io.BytesIO()
    torch.save(loader.state_dict(), stored)
    assert loader.experience is None or len(loader.experience.examples.tokens) < 200
    stored.seek(0)
    resumed = replayed(0.4, **options).train_dataloader()
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert [(batch.ids.tolist(), batch.index.tolist()) for batch in resumed] == expected[taken:]


def test_too_few_groups_are_refused_before_anything_is_drawn():
    message = r"rounds\.replay=0\.5 mixes 8 groups .* and 4 of its 28 have a prompt that is not in the round: lower"
    examples = [Example(one.prompt, [[9], [8]]) for one in PROMPTS] + pairs(28)[24:]
    data = replayed(0.1)
    drawn = {prompt_tokens(PROMPTS[row].prompt) for row in data.stream.take(0, 24).tolist()}
    assert len(drawn) == 24
    with pytest.raises(ValueError, match=message.replace("mixes 8", "mixes 24")):
        replay_of(0.5, examples).prepare(drawn)
    few = replay_of(0.5, examples)
    few.prepare(set(list(drawn)[:4]))
    with pytest.raises(ValueError, match=message):
        few.take(8, drawn)


def test_compact_groups_are_the_same_ones():
    examples = Examples.build(pairs())
    chosen = examples.select(np.array([7, 3, 30]))
    compact = chosen.compact()
    assert [json.dumps(one.responses) for one in compact] == [json.dumps(one.responses) for one in chosen]
    assert [one.prompt for one in compact] == [one.prompt for one in chosen]
    assert len(compact.tokens) == int(chosen.lengths.sum())


def test_a_share_of_one_is_refused():
    with pytest.raises(ValueError, match=r"rounds\.replay=1\.0 must be in \[0, 1\)"):
        looped(rounds_of(replay=1.0))
