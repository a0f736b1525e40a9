"""Loaders: the same batches on any number of processes, and a position that survives a kill at any moment."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import warnings
from itertools import chain, islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from rlhf_lightning.data.batches.loader import EpochLoader, ListLoader, evaluation_batches, reference_batches
from rlhf_lightning.data.batches.plan import Batching
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.types import Example, PreferenceBatch

GROUPS, EPOCHS = 26, 3
ACCUMULATE = 2


def pairs(count: int = GROUPS, seed: int = 0) -> Examples:
    """Pairs of random tokens and lengths."""
    rng = np.random.default_rng(seed)
    return Examples.build(
        Example(*[rng.integers(0, 50, rng.integers(1, 9)).tolist()], [rng.integers(0, 50, n).tolist() for n in (3, 5)])
        for _ in range(count)
    )


def indices(batches: Any) -> list[list[int]]:
    """The groups of each batch."""
    return [batch.index.tolist() for batch in batches]


BATCHINGS = [Batching(batch_size=6, seed=1), Batching(max_tokens=60, seed=1)]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_each_iteration_is_another_epoch_with_every_group_once(batching: Batching) -> None:
    loader = EpochLoader(pairs(), batching, accumulate=2)
    epochs = [indices(loader) for _ in range(3)]
    for epoch in epochs:
        assert len(epoch) == len(loader)
        assert sorted(chain(*epoch)) == list(range(GROUPS))
    assert epochs[0] != epochs[1] != epochs[2]
    assert loader.state_dict()["epoch"] == 3


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_gives_the_remaining_batches(batching: Batching, workers: int) -> None:
    # fails if the position is advanced after the yield, counts what workers have packed ahead, or splits a step of two
    whole = EpochLoader(pairs(), batching, accumulate=2)
    expected = indices(whole) + indices(whole)
    for stop in range(1, len(expected)) if workers == 0 else (1, len(whole), len(whole) + 2):
        first = EpochLoader(pairs(), batching, accumulate=2, workers=workers)
        taken = indices(islice(first, min(stop, len(whole))))
        taken += indices(islice(first, stop - len(taken))) if stop > len(taken) else []
        second = EpochLoader(pairs(), Batching(**{**vars(batching), "seed": 99}), accumulate=2, workers=workers)
        second.load_state_dict(first.state_dict())
        taken = taken[: stop // 2 * 2]
        rest = indices(second)
        while len(taken) + len(rest) < len(expected):
            rest += indices(second)
        assert taken + rest == expected, stop


def test_an_interrupted_epoch_is_left_behind_by_a_new_iteration() -> None:
    loader, whole = (EpochLoader(pairs(), BATCHINGS[0]) for _ in range(2))
    epochs = [indices(whole) for _ in range(2)]
    assert indices(islice(loader, 2)) == epochs[0][:2]
    assert indices(loader) == epochs[1]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_processes_share_a_step(batching: Batching) -> None:
    accumulating = list(EpochLoader(pairs(), batching, accumulate=4))
    ranks = [list(EpochLoader(pairs(), batching, accumulate=2, rank=r, world_size=2)) for r in range(2)]
    dealt = [batch for together in zip(*ranks, strict=True) for batch in together]
    assert indices(dealt) == indices(accumulating)
    assert [batch.totals for batch in dealt] == [batch.totals for batch in accumulating]
    for step in range(0, len(dealt), 4):
        groups = sum(len(batch) for batch in dealt[step : step + 4])
        assert {batch.totals.groups for batch in dealt[step : step + 4]} == {groups}
    assert len({EpochLoader(pairs(), batching, rank=r, world_size=2).state_dict()["data"] for r in range(2)}) == 1


def test_the_state_is_plain_and_refused_with_other_data_or_options(caplog: pytest.LogCaptureFixture) -> None:
    loader = EpochLoader(pairs(), BATCHINGS[0], accumulate=2)
    indices(islice(loader, 3))
    state = loader.state_dict()
    assert all(isinstance(value, int | str | None) for value in state.values())
    with pytest.raises(ValueError, match=r"middle of epoch 0: data\.batch_size was 6 and is 8"):
        EpochLoader(pairs(), Batching(batch_size=8), accumulate=2).load_state_dict(state)
    tokens = EpochLoader(pairs(), BATCHINGS[1], accumulate=2)
    indices(islice(tokens, 2))
    with pytest.raises(ValueError, match=r"micro-batches of a step .* was 2 and is 4"):
        EpochLoader(pairs(), BATCHINGS[1], accumulate=2, world_size=2).load_state_dict(tokens.state_dict())
    with pytest.raises(ValueError, match="the data has changed"):
        EpochLoader(pairs(seed=5), BATCHINGS[0], accumulate=2).load_state_dict(state)
    EpochLoader(pairs(), BATCHINGS[0], accumulate=2, rank=1, world_size=2).load_state_dict(state)  # same groups a step
    indices(loader)
    with caplog.at_level(logging.WARNING):  # at an epoch's beginning there is nothing to contradict
        EpochLoader(pairs(), Batching(batch_size=8), accumulate=2).load_state_dict(loader.state_dict())
    assert "data.batch_size was 6 and is 8" in caplog.text


def test_the_state_of_another_version_is_refused() -> None:
    loader = EpochLoader(pairs(), BATCHINGS[0], accumulate=2)
    state = loader.state_dict()
    older = {name: value for name, value in state.items() if name != "step"} | {"position": 4}
    with pytest.raises(ValueError, match=r"lacks step \(it holds .*position.*another version .* ckpt_path=<this"):
        loader.load_state_dict(older)
    with pytest.raises(ValueError, match=r"lacks accumulate, data \("):
        loader.load_state_dict({name: value for name, value in state.items() if name not in ("accumulate", "data")})


def test_the_global_generators_are_not_used() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for workers in (0, 1):
        indices(EpochLoader(pairs(), BATCHINGS[0], workers=workers))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("batching", [Batching(batch_size=6), Batching(max_tokens=60), Batching(batch_size=64)])
def test_evaluation_sees_every_group_once_on_any_number_of_processes(batching: Batching) -> None:
    examples = pairs()
    for world_size in (1, 2, 3):
        loaders = [
            ListLoader(evaluation_batches(examples, batching, rank=rank, world_size=world_size), world_size=world_size)
            for rank in range(world_size)
        ]
        assert len({len(loader) for loader in loaders}) == 1
        batches = [batch for loader in loaders for batch in loader]
        assert sorted(chain(*indices(batches))) == list(range(GROUPS))
        for batch in batches:  # the totals of the whole set, so that no mean depends on how it was cut
            assert (batch.totals.groups, batch.totals.micro_batches) == (GROUPS, len(batches))
            assert sum(batch.totals.slot_tokens) == sum(len(other.target) for other in batches)
    assert indices(ListLoader(evaluation_batches(examples, Batching(batch_size=6)))) == [
        list(range(i, min(i + 6, GROUPS))) for i in range(0, GROUPS, 6)
    ]


@pytest.mark.parametrize("options", [{"size": 4}, {"max_tokens": 40}, {"max_tokens": 80, "padded": True}])
def test_reference_batches_are_longest_first_and_equally_many(options: dict[str, Any]) -> None:
    train, validation = pairs(), pairs(7, seed=3)
    parts = [(train, np.arange(3, GROUPS)), (validation, np.arange(7))]
    dealt = [reference_batches(parts, rank=rank, world_size=2, **options) for rank in range(2)]
    assert len(dealt[0]) == len(dealt[1])
    for examples, wanted in parts:
        seen = {int(group) for share in dealt for part, groups in share if part is examples for group in groups}
        assert seen == set(wanted.tolist())
    if "padded" in options:
        tokens = [len(groups) * int(part.padded_lengths[groups].max()) for part, groups in dealt[0]]
    else:
        tokens = [int(part.lengths[groups].sum()) for part, groups in dealt[0]]
    assert tokens == sorted(tokens, reverse=True)
    assert max(tokens) <= options.get("max_tokens", 10_000)
    assert reference_batches([(train, np.arange(0))], size=4) == []


# With Lightning: the checkpoints of a run, and the weights of the runs that resume from them.


class Bag(L.LightningModule):
    """A bag-of-words preference model: small, and sensitive to which batch comes when."""

    def __init__(self, seen: list[list[int]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = torch.nn.Embedding(50, 1, dtype=torch.float64)
        self.seen = seen

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.index.tolist())
        pair = batch.pair(batch.ragged(self.score(batch.ids[batch.target]).squeeze(-1)))
        margin = pair.chosen.sum() - pair.rejected.sum()
        loss = torch.nn.functional.softplus(-margin)
        return loss.sum() / batch.totals.groups * batch.totals.micro_batches

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class SaveEachStep(L.Callback):
    """Checkpoints at every optimiser step and epoch end; optionally the machine dies after one."""

    def __init__(self, folder: Path, die_at: int | None = None) -> None:
        self.folder, self.die_at = folder, die_at

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        batch = trainer.fit_loop.epoch_loop.total_batch_idx
        if (batch + 1) % ACCUMULATE == 0:
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")
            if trainer.global_step == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")


def fit(
    batching: Batching,
    *,
    accumulate: int = ACCUMULATE,
    ckpt: Path | None = None,
    callbacks: list[L.Callback] | None = None,
    limit: int | None = None,
    workers: int = 0,
) -> tuple[list[list[int]], str, torch.Tensor]:
    """Train; return the groups of every batch, a digest of the weights, and the weights."""
    seen: list[list[int]] = []
    module = Bag(seen)
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        accumulate_grad_batches=accumulate,
        limit_train_batches=limit,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = EpochLoader(pairs(), batching, accumulate=accumulate, workers=workers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "does not have many workers", "resuming mid-epoch", ...
        trainer.fit(module, loader, ckpt_path=ckpt)
    weight = module.score.weight.detach()
    return seen, hashlib.sha1(weight.numpy().tobytes()).hexdigest(), weight


@pytest.mark.parametrize(("batching", "limit"), [(BATCHINGS[0], None), (BATCHINGS[1], None), (BATCHINGS[0], 4)])
def test_lightning_resumes_from_every_step_and_epoch_end(batching: Batching, limit: int | None, tmp_path: Path) -> None:
    seen, digest, _ = fit(batching, callbacks=[SaveEachStep(tmp_path)], limit=limit)
    steps = len(seen) // ACCUMULATE
    assert steps >= 6
    for step in range(1, steps):
        rest, resumed, _ = fit(
            Batching(**{**vars(batching), "seed": 77}), ckpt=tmp_path / f"step{step}.ckpt", limit=limit
        )
        assert rest == seen[step * ACCUMULATE :], step
        assert resumed == digest, step
    for epoch in range(EPOCHS - 1):
        rest, resumed, _ = fit(batching, ckpt=tmp_path / f"epoch{epoch}.ckpt", limit=limit)
        assert rest == seen[len(seen) // EPOCHS * (epoch + 1) :]
        assert resumed == digest


@pytest.mark.slow
def test_lightning_resumes_after_a_kill(tmp_path: Path) -> None:
    seen, digest, _ = fit(BATCHINGS[0], workers=2)
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = [sys.argv[1]]; import test_loader as t;"
        "t.fit(t.BATCHINGS[0], workers=2, callbacks=[t.SaveEachStep(Path(sys.argv[2]), die_at=6)])"
    )
    root = Path(__file__).parents[3]
    killed = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not (tmp_path / "step7.ckpt").exists()
    rest, resumed, _ = fit(BATCHINGS[0], ckpt=tmp_path / "step6.ckpt", workers=2)
    assert rest == seen[6 * ACCUMULATE :]
    assert resumed == digest


@pytest.mark.parametrize("batching", [BATCHINGS[0]])
def test_accumulation_does_not_change_what_is_learnt(batching: Batching) -> None:
    # fails if the totals are those of a micro-batch: the last step of an epoch has 2 of the usual 6 groups
    weights = [fit(batching, accumulate=accumulate)[2] for accumulate in (1, 2)]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-12, atol=1e-12)
