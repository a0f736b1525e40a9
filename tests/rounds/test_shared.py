"""Samples, scores and reference log-probs of a run's start that another run has computed: read, equal to the bit."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from rlhf_lightning.losses import ipo
from rlhf_lightning.methods import Preference
from rlhf_lightning.rounds.live import LivePolicy
from rlhf_lightning.rounds.record import Rollouts
from rlhf_lightning.rounds.shared import SharedRounds
from rlhf_lightning.schedules import cosine
from tests.helpers.online import Engine, builder
from tests.helpers.rounds import data_of, module_of
from tests.helpers.training import trainer


def ipo_of(**options) -> Preference:
    return Preference(builder(**options), ipo, partial(torch.optim.AdamW, lr=1e-2), partial(cosine, warmup=0.2))


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Rounds whose reference log-probs were computed."""
    computed: list[int] = []
    scores = LivePolicy.scores

    def counted(self, learned, plan, compute):
        computed.append(learned.number)
        return scores(self, learned, plan, compute)

    monkeypatch.setattr(LivePolicy, "scores", counted)
    return computed


def run(folder, module, shared=None, **options):
    """Two rounds of two steps; weights, the calls of the engine, and the samples."""
    engine = Engine()
    data = data_of(module, folder / "rollouts", engine, **options)
    data.shared = shared
    trainer(folder, max_epochs=1, max_steps=4, limit_val_batches=0).fit(module, datamodule=data)
    rows = [json.loads(line) for file in sorted((folder / "rollouts").glob("*.jsonl")) for line in file.open()]
    groups = [file.read_bytes() for file in sorted((folder / "rollouts" / "groups").glob("*.jsonl"))]
    return {name: value.clone() for name, value in module.policy.state_dict().items()}, engine.calls, rows, groups


def test_the_start_is_drawn_and_compared_once_for_two_losses(tmp_path, passes):
    """The second job draws its second round only; every file and weight is what it would be without the first."""
    shared = SharedRounds(tmp_path / "store", "one", "frozen")
    assert run(tmp_path / "first", module_of(), shared)[1] == 2
    assert passes == [0, 1]
    weights, calls, rows, groups = run(tmp_path / "second", ipo_of(), shared)
    assert calls == 1
    assert passes == [0, 1, 1]
    alone = run(tmp_path / "alone", ipo_of())
    assert alone[1] == 2
    assert all(torch.equal(weights[name], alone[0][name]) for name in weights)
    assert (rows, groups) == alone[2:]


@pytest.mark.parametrize(
    ("identity", "options", "model"),
    [("another reward", {}, {}), ("one", {"count": 32}, {}), ("one", {"seed": 4}, {}), ("one", {}, {"seed": 1})],
    ids=["reward", "prompts", "seed", "weights"],
)
def test_another_start_is_never_read(tmp_path, identity, options, model):
    run(tmp_path / "first", module_of(), SharedRounds(tmp_path / "store", "one", "frozen"))
    other = SharedRounds(tmp_path / "store", identity, "frozen")
    assert run(tmp_path / "second", ipo_of(**model), other, **options)[1] == 2


def test_log_probs_of_another_cut_or_of_another_model_are_computed(tmp_path, passes):
    """Sizes of micro-batches round differently; samples are shared all the same."""
    run(tmp_path / "first", module_of(), SharedRounds(tmp_path / "store", "one", "frozen"))
    passes.clear()
    assert run(tmp_path / "second", ipo_of(), SharedRounds(tmp_path / "store", "one", None))[1] == 1
    assert passes == [0, 1]
    passes.clear()
    assert run(tmp_path / "third", ipo_of(), SharedRounds(tmp_path / "store", "one", "frozen initial"))[1] == 1
    assert passes == [0, 1]


def test_one_draws_while_another_waits_or_draws_by_itself(tmp_path, caplog):
    files = Rollouts(tmp_path, str)
    shared = SharedRounds(tmp_path / "store", "one", None, patience=0.05)
    with shared.claimed("key", files) as mine, shared.claimed("other key", files) as other:
        assert mine is not None
        assert other is not None
        with shared.claimed("key", files) as waited:
            assert waited is None
    assert "paths.shared" in caplog.text
    with shared.claimed("key", files) as mine:
        assert mine is not None


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path, caplog):
    (tmp_path / "store").write_text("a file")
    assert run(tmp_path / "run", module_of(), SharedRounds(tmp_path / "store", "one", "frozen"))[1] == 2
    assert "is not shared" in caplog.text
