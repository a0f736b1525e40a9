"""Samples, scores and reference log-probs of a run's start that another run has computed: read, equal to the bit."""

from __future__ import annotations

import json
import multiprocessing
from functools import partial

import pytest
import torch

from rlhf_lightning.losses import dpo, ipo
from rlhf_lightning.methods import Preference
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rounds.live import LivePolicy
from rlhf_lightning.rounds.record import Rollouts
from rlhf_lightning.rounds.shared import SharedRounds
from rlhf_lightning.schedules import cosine
from rlhf_lightning.types import Draw
from tests.helpers.jobs import ranks
from tests.helpers.online import Engine, builder
from tests.helpers.rounds import data_of, module_of, rounds_of
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


def run(folder, module, shared=None, processes=None, **options):
    """Two rounds of two steps; weights, the calls of the engine, and the samples."""
    folder.mkdir(exist_ok=True)
    engine = Engine(folder)
    data = data_of(module, folder / "rollouts", engine, **options)
    data.shared = shared
    limits = {"max_epochs": 1, "max_steps": 4, "limit_val_batches": 0}
    trainer(folder, **limits, **(processes or {})).fit(module, datamodule=data)
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


@pytest.mark.parametrize("adapter", [None, Lora(r=2, seed=0)], ids=["frozen", "adapter_off"])
def test_what_the_start_draws_is_drawn_once_for_all_rounds(tmp_path, passes, adapter):
    """RSO's samples: the second job draws and compares nothing, and is what it would be without the first."""
    shared = SharedRounds(tmp_path / "store", "one", "auto", fixed=True)
    rounds = rounds_of(draws=[Draw(source="reference", n=3)])
    small = partial(ModelBuilder, TinyRandom(hidden_size=16, intermediate_size=32), adapter, "auto")

    def trained(name, loss, store):
        module = Preference(small(), loss, partial(torch.optim.AdamW, lr=1e-2), partial(cosine, warmup=0.2))
        return run(tmp_path / name, module, store, rounds=rounds)

    assert trained("first", dpo, shared)[1] == 2
    assert passes == [0, 1]
    weights, calls, rows, groups = trained("second", ipo, shared)
    assert calls == 0
    assert passes == [0, 1]
    alone = trained("alone", ipo, None)
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
    with shared.claimed("key", files) as claimed, shared.claimed("other key", files) as other:
        assert claimed is not None
        assert other is not None
        with shared.claimed("key", files) as waited:
            assert waited is None
    assert "paths.shared" in caplog.text
    with shared.claimed("key", files) as claimed:
        assert claimed is not None


def prompts_drawn(folder) -> list[int]:
    """Prompts of each call of the engine, of all processes."""
    return [int(line) for line in (folder / "drawn.txt").read_text().split()]


def job(folder, store, make, processes=None) -> None:
    run(folder, make(), SharedRounds(store, "one", "frozen"), processes)


@pytest.mark.slow
def test_processes_read_what_one_process_drew(tmp_path):
    """The first process reads for both; without the store they draw four prompts each of the first round."""
    job(tmp_path / "first", tmp_path / "store", module_of)
    two = {"devices": 2, "strategy": "ddp"}
    assert ranks(2, job, tmp_path / "two", tmp_path / "store", ipo_of, two) == [0, 0]
    assert prompts_drawn(tmp_path / "two") == [4, 4]
    one, other = ((tmp_path / name / "rollouts" / "00000.jsonl").read_text() for name in ("first", "two"))
    ids = [[json.loads(line)["ids"] for line in text.splitlines()] for text in (one, other)]
    assert ids[0] == ids[1]


@pytest.mark.slow
def test_of_two_jobs_at_the_same_moment_one_draws(tmp_path):
    context = multiprocessing.get_context("fork")
    jobs = [
        context.Process(target=job, args=(tmp_path / name, tmp_path / "store", make))
        for name, make in (("a", module_of), ("b", ipo_of))
    ]
    for process in jobs:
        process.start()
    for process in jobs:
        process.join(120)
    assert [process.exitcode for process in jobs] == [0, 0]
    assert sum(len(prompts_drawn(tmp_path / name)) for name in "ab") == 3


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path, caplog):
    (tmp_path / "store").write_text("a file")
    assert run(tmp_path / "run", module_of(), SharedRounds(tmp_path / "store", "one", "frozen"))[1] == 2
    assert "is not shared" in caplog.text
