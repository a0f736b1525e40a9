"""Samples of two policies in one round: whose they are, what the loss reads, and the reference under an adapter."""

from __future__ import annotations

import json
from functools import partial

import lightning as L
import pytest
import torch

from rlhf_lightning.losses import sppo_soft
from rlhf_lightning.methods import Preference
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rewards.win_matrix import matrix_from_scores
from rlhf_lightning.types import Draw
from tests.helpers.jobs import Memory
from tests.helpers.online import LowBytes, builder
from tests.helpers.round_methods import METHODS, Circle, RoundMethod, judged_with_self
from tests.helpers.rounds import data_of, rounds_of
from tests.helpers.training import trainer

LN2 = float(torch.tensor(2.0).log())


class ReferenceLogProbs(L.Callback):
    """Keeps the summed reference log-probs of every response that the reference drew, by its tokens."""

    def __init__(self):
        self.sums = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        sums = batch.ragged(batch.reference_log_probs).sum().tolist()
        for number, ((start, end), total) in enumerate(zip(batch.response_span.tolist(), sums, strict=True)):
            if batch.reference_sample[number]:
                self.sums[int(batch.index[number // 2]), *batch.ids[start:end].tolist()] = total


def fitted(folder, method: RoundMethod, make=builder, reward=None, lr=1e-2, callbacks=()):
    logger, module = Memory(), method.module(make, partial(torch.optim.SGD, lr=lr))
    run = trainer(folder, [*callbacks], logger=logger, use_distributed_sampler=False)
    data = data_of(module, folder / "rollouts", reward=reward or Circle(), rounds=method.rounds)
    run.fit(module, datamodule=data)
    return logger


def rows_of(folder):
    return [json.loads(line) for file in sorted(folder.glob("rollouts/*.jsonl")) for line in file.open()]


def test_the_first_loss_of_xpo_is_ln_2_and_the_term_on_the_references_sample(tmp_path):
    """Whichever of both won; fails where the term is on the policy's sample or on the loser."""
    logger = fitted(tmp_path, METHODS["xpo"], reward=LowBytes(), lr=0.0)
    rows = [row for row in rows_of(tmp_path) if row["rollout"] == 0]
    assert {row["source"] for row in rows if row["kept"] == ["chosen"]} == {"policy", "reference"}
    drawn = [sum(row["log_probs"]) for row in rows if row["source"] == "reference" and row["kept"]]
    expected = LN2 + 0.01 * sum(drawn) / len(drawn)
    assert logger.series("train/loss")[0] == pytest.approx(expected, abs=1e-5)


def test_nash_md_trains_on_the_policys_samples_alone(tmp_path):
    """At equal policies the penalty is 0, so the loss is -(P - 1/2) log pi, the mean over a prompt's samples."""
    logger = fitted(tmp_path, METHODS["nash_md"], lr=0.0)
    rows = [row for row in rows_of(tmp_path) if row["rollout"] == 0]
    assert {row["source"] for row in rows if row["trained"]} == {"policy"}
    rates = {}
    for row in rows:
        rivals = [wins for wins, other in zip(row["wins"], range(4), strict=True) if other >= 2]
        if row["source"] == "policy":
            gain = sum(rivals) / len(rivals) - 0.5
            rates.setdefault(row["place"], []).append(-gain * sum(row["log_probs"]))
    expected = sum(sum(each) / len(each) for each in rates.values()) / len(rates)
    assert logger.series("train/loss")[0] == pytest.approx(expected, abs=1e-5)
    assert logger.series("train/kl/sample")[0] == 0.0


def test_the_first_loss_of_sppo_is_that_of_its_targets(tmp_path):
    """Scores 2, 1, 0, -1, -2 as a matrix: targets +-309.289 nats, which log-ratios of 0 miss by 95,659.51."""

    class Ranking(Circle):
        def win_matrix(self, groups):
            return [matrix_from_scores([2.0, 1.0, 0.0, -1.0, -2.0]) for _ in groups]

    rounds = rounds_of(selector=judged_with_self, draws=[Draw(n=5)], reference="round_start")
    method = RoundMethod(Preference, sppo_soft, rounds)
    losses = fitted(tmp_path, method, reward=Ranking(), lr=1e-9).series("train/loss")
    assert losses[0] == pytest.approx(95_659.51, abs=0.5)
    assert losses[::2] == [losses[0]] * 3


def test_the_reference_under_an_adapter_is_the_base_after_any_number_of_steps(tmp_path):
    """Samples bit for bit and log-probs of the run that does not move; the policy's samples are others."""
    make = partial(ModelBuilder, TinyRandom(hidden_size=16, intermediate_size=32), Lora(r=2, seed=0), "adapter_off")
    kept = [ReferenceLogProbs(), ReferenceLogProbs()]
    for name, lr, callback in (("still", 0.0, kept[0]), ("moving", 50.0, kept[1])):
        fitted(tmp_path / name, METHODS["xpo"], make, LowBytes(), lr, [callback])
    drawn = {
        name: {
            source: [(row["ids"], row["log_probs"]) for row in rows_of(tmp_path / name) if row["source"] == source]
            for source in ("policy", "reference")
        }
        for name in ("still", "moving")
    }
    assert drawn["still"]["reference"] == drawn["moving"]["reference"]
    assert drawn["still"]["policy"] != drawn["moving"]["policy"]
    both = kept[0].sums.keys() & kept[1].sums.keys()
    assert len(both) >= 24
    assert all(kept[0].sums[key] == pytest.approx(kept[1].sums[key], abs=1e-4) for key in both)
