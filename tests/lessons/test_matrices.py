"""Win matrices, from a judge that compares responses to the selector that reads it, and over a kill."""

from __future__ import annotations

import json
from functools import partial
from itertools import combinations

import pytest

from rlhf_lightning.rewards.win_matrix import matrix_of
from rlhf_lightning.selection import win_probability
from tests.helpers.rounds import rounds_of
from tests.lessons.test_select import Silent, looped

JUDGED = partial(win_probability, include_self=False)
#: Three samples a prompt whose first tokens are 1, 2, 3 and four that differ from prompt to prompt.
CIRCLE = Silent(lambda seed, j: [1 + j, 4 + seed % 5])


class Circle:
    """1 beats 2 beats 3 beats 1, by .9, .8 and .7; no verdict on what begins with a token in ``silent``."""

    name = "circle"
    chance = {(1, 2): 0.9, (2, 3): 0.8, (3, 1): 0.7}  # noqa: RUF012

    def __init__(self, silent=()):
        self.silent, self.asked = set(silent), []

    def __call__(self, groups):
        raise AssertionError("the pairs were judged already")

    def win_matrix(self, groups):
        self.asked += [(group.index, *pair) for group in groups for pair in combinations(range(3), 2)]
        return [self._matrix([ids[0] for ids in group.responses]) for group in groups]

    def _matrix(self, firsts):
        return matrix_of(
            len(firsts), [(i, j, self._chance(firsts[i], firsts[j])) for i, j in combinations(range(3), 2)]
        )

    def _chance(self, one, other):
        if {one, other} & self.silent:
            return None
        return self.chance.get((one, other), 1 - self.chance.get((other, one), 0.5))


def test_matrices_reach_the_selector_and_each_pair_is_judged_once():
    """1 wins .9 and .3, 2 wins .1 and .8, 3 wins .7 and .2: fails where scores stand for the matrix, which has .6."""
    reward = Circle()
    data, _ = looped(rounds_of(selector=JUDGED, minibatches=1), CIRCLE, reward)
    batch = next(iter(data.train_dataloader()))
    assert batch.win_probability.tolist() == pytest.approx([0.6, 0.45] * 4)
    assert [batch.ids[start].item() for start in batch.response_span[:, 0]] == [1, 3] * 4
    assert len(reward.asked) == len(set(reward.asked)) == 4 * 3
    assert data.metrics["train/select/intransitive"] == 1.0
    assert data.metrics["train/score/mean"] == pytest.approx(0.5), "scores are mean wins"


def test_matrices_are_kept_over_a_kill_and_not_judged_again(tmp_path):
    """Verdicts, and that there was none, are read from the rollout's file; a file without them is drawn from again."""
    rounds = rounds_of(selector=JUDGED, minibatches=1)
    data, _ = looped(rounds, CIRCLE, Circle(silent=[3]), folder=tmp_path)
    first = next(iter(data.train_dataloader()))
    rows = [json.loads(line) for line in (tmp_path / "00000.jsonl").read_text().splitlines()]
    assert [row["wins"] for row in rows[:3]] == [[0.5, 0.9, None], [pytest.approx(0.1), 0.5, None], [None, None, 0.5]]
    assert [row["score"] for row in rows[:3]] == [0.9, pytest.approx(0.1), None]
    again = Circle()
    resumed, _ = looped(rounds, CIRCLE, again, folder=tmp_path)
    batch = next(iter(resumed.train_dataloader()))
    assert again.asked == []
    assert batch.ids.tolist() == first.ids.tolist()
    assert batch.win_probability.tolist() == first.win_probability.tolist() == pytest.approx([0.9, 0.1] * 4)


def test_a_file_of_scores_alone_is_not_taken_for_one_with_matrices(tmp_path):
    class Both(Circle):
        name = "sum"

        def __call__(self, groups):
            return [[float(sum(ids)) for ids in group.responses] for group in groups]

    data, _ = looped(rounds_of(minibatches=1), CIRCLE, Both(), folder=tmp_path)
    next(iter(data.train_dataloader()))
    reward = Both()
    data, _ = looped(rounds_of(selector=JUDGED, minibatches=1), CIRCLE, reward, folder=tmp_path)
    assert next(iter(data.train_dataloader())).win_probability is not None
    assert len(reward.asked) == 4 * 3


def test_a_reward_that_compares_nothing_is_refused_before_anything_is_drawn():
    with pytest.raises(ValueError, match=r"reward 'sum' scores each response by itself and compares none: choose a ju"):
        looped(rounds_of(selector=JUDGED))
    looped(rounds_of(selector=partial(win_probability, judge="scores")))
