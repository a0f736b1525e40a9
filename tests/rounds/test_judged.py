"""Accuracy of a reward on held-out pairs as rounds begin: the number, its share of every process, and the log."""

from __future__ import annotations

from functools import partial

import pytest

from rlhf_lightning.data.batches.plan import ProcessShare
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.lessons import SelectLesson
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.rounds.collect import Collector
from rlhf_lightning.rounds.processes import Clock
from rlhf_lightning.types import Example
from tests.helpers.fake_rollouts import FakeEngine, Sum
from tests.helpers.online import prompts
from tests.helpers.rounds import rounds_of
from tests.lessons.test_select import Learner, Silent

#: Right, wrong, a tie, and one without a score; ``Sum`` adds up the tokens.
PAIRS = [
    Example([1], [[5, 5], [2]], row="pairs:0"),
    Example([2], [[1], [2]], row="pairs:1"),
    Example([3], [[2, 2], [4]], row="pairs:2"),
    Example([4], [[77], [3]], row="pairs:3"),
]


class Counting(Sum):
    """Cannot score the token 77, asks the policy, and counts."""

    def __init__(self) -> None:
        self.policy, self.asked, self.seen = None, [], 0

    def __call__(self, groups):
        self.asked.append(self.policy)
        self.seen += len(groups)
        return [[None if 77 in ids else float(sum(ids)) for ids in group.responses] for group in groups]

    def metrics(self):
        seen, self.seen = self.seen, 0
        return {"seen": float(seen)}


def collector(reward) -> Collector:
    return Collector(FakeEngine(), reward, rounds_of(), ProcessShare(), Clock())


def test_ties_count_half_and_what_is_not_scored_counts_nowhere():
    """One right, one wrong, one tie: 1/2, with which every coin would do; and a quarter of the pairs has no score."""
    reward, module = Counting(), Learner()
    chosen = collector(reward)
    assert chosen.judged(Examples.build(PAIRS), module) == {"judge/accuracy": 0.5, "judge/unscored": 0.25}
    assert chosen.judged(Examples.build(PAIRS[:1]), module) == {"judge/accuracy": 1.0, "judge/unscored": 0.0}
    assert chosen.judged(Examples.build(PAIRS[3:]), module) == {"judge/unscored": 1.0}
    assert reward.asked == [module] * 3, "the policy as it is now judges"
    assert reward.metrics() == {"seen": 0.0}, "what was counted is no part of the round"
    assert collector(None).judged(Examples.build(PAIRS), module) == {}


@pytest.mark.parametrize(("count", "accuracy"), [(0, None), (1, 1.0), (2, 0.5), (100, 0.5)])
def test_it_is_logged_as_each_round_begins(count, accuracy):
    source = AlignmentDataModule(prompts(24), kind="prompt", batch_size=4, seed=3)
    groups = AlignmentDataModule(PAIRS, kind="preference", validation=PAIRS, batch_size=4)
    lesson = partial(SelectLesson, kind="preference", seed=3)
    rounds = rounds_of(judge_pairs=count, minibatches=1)
    data = OnlineData(source, Silent(), Counting(), rounds, None, lesson=lesson, groups=groups)
    data.attach(Learner())
    data.setup()
    seen = []
    for _ in data.train_dataloader():
        seen.append(data.metrics.get("train/judge/accuracy"))
        assert data.metrics["train/seen"] == 4.0
    assert seen == [accuracy] * 6
