"""Settings that depend on rounds: options of the loss, and the names that scores are logged under."""

from __future__ import annotations

import json
import logging
from functools import partial
from types import SimpleNamespace

import pytest

from rlhf_lightning.callbacks import ImplicitRewards
from rlhf_lightning.lessons.select import warn_of_few
from rlhf_lightning.losses import dpo
from tests.helpers.jobs import Memory
from tests.helpers.online import LowBytes
from tests.helpers.rounds import data_of, module_of, rounds_of
from tests.helpers.training import trainer
from tests.lessons.test_select import looped

SCHEDULE = {"loss_options": {"beta": [0.1, 0.1, 0.1, 5.0]}, "minibatches": 1}


@pytest.mark.parametrize("taken", [0, 1, 5, 6, 7])
def test_options_of_the_loss_follow_the_rounds(taken):
    """SPIN's released beta: 0.1 in three rounds, 5.0 from the fourth on; also of a round that a checkpoint held."""
    loader = looped(rounds_of(**SCHEDULE, inner_epochs=2))[0].train_dataloader()
    iterator = iter(loader)
    for _ in range(taken):
        next(iterator)
    data, _ = looped(rounds_of(**SCHEDULE, inner_epochs=2))
    resumed = data.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    options = [batch.loss_options for batch in resumed]
    assert options == [{"beta": beta} for beta in [0.1] * 6 + [5.0] * 6][taken:]
    assert data.metrics["train/round/beta"] == 5.0


def test_scores_are_not_averaged_with_implicit_rewards_of_the_same_name(tmp_path):
    """A reward or a term of one may be called accuracy, which is a metric of what the policy learned as well."""

    class Accuracy(LowBytes):
        name = "accuracy"

        def score(self, sample):
            return super().score(sample) + 10

    logger, module = Memory(), module_of()
    data = data_of(module, tmp_path / "rollouts", reward=Accuracy(), rounds=rounds_of(minibatches=1))
    trainer(tmp_path, [ImplicitRewards()], logger=logger, use_distributed_sampler=False).fit(module, datamodule=data)
    rows = [[json.loads(line) for line in file.open()] for file in sorted((tmp_path / "rollouts").glob("*.jsonl"))]
    means = [sum(row["score"] for row in each) / len(each) for each in rows]
    assert logger.series("train/score/accuracy") == pytest.approx(means)
    assert logger.series("train/score/mean") == pytest.approx(means)
    assert all(0 <= value <= 1 for value in logger.series("train/reward/accuracy"))


def test_a_schedule_is_the_loss_with_each_rounds_option(tmp_path):
    """One value is that option; another one from the second round on changes nothing of the first."""

    def run(name: str, *, beta: float = 0.1, **options) -> list[float]:
        logger, module = Memory(), module_of()
        module.loss = partial(dpo, beta=beta)
        run = trainer(tmp_path / name, [], logger=logger, use_distributed_sampler=False)
        run.fit(module, datamodule=data_of(module, tmp_path / name / "rollouts", rounds=rounds_of(**options)))
        return logger.series("train/loss")

    plain = run("plain", beta=0.2)
    assert run("constant", loss_options={"beta": [0.2]}) == plain
    followed = run("followed", loss_options={"beta": [0.2, 3.0]})
    assert followed[:2] == plain[:2]
    assert followed[2] != plain[2]


def test_a_round_of_few_groups_is_reported_with_what_explains_it(caplog):
    """Four samples of five prompts, three of them without a group: six cut off and three without a score of twelve."""

    def prompt(finishes: str, scores: list[float | None]) -> SimpleNamespace:
        samples = [SimpleNamespace(finish="length" if finish == "x" else "stop") for finish in finishes]
        return SimpleNamespace(group=SimpleNamespace(samples=samples), score=scores)

    whole, cut, unscored = (
        prompt("....", [1.0, 2.0, 3.0, 4.0]),
        prompt("xxx.", [1.0] * 4),
        prompt("....", [None] * 3 + [1.0]),
    )
    groups = [whole, cut, whole, cut, unscored]
    with caplog.at_level(logging.WARNING):
        warn_of_few(0, groups[:4], {0, 2})
        warn_of_few(0, [whole] * 4, {0})  # a selector may ask for the best prompts alone
        warn_of_few(0, groups, {0, 2}, keeps_cut_off=True)  # ties: what was cut off counts
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        warn_of_few(7, groups, {0, 2})
    assert "round 7: 3 of 5 prompts have no group" in caplog.text
    assert "Of their samples 50 % were cut off" in caplog.text
    assert "25 % have no score" in caplog.text
    assert "rounds.selector.cut_off=keep" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_few(8, [unscored], set(), keeps_cut_off=True)
    assert "Of their samples 75 % have no score" in caplog.text
