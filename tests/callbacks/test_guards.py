"""Non-finite stop, seeds, reference sync, average of the weights, atomic files."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from rlhf_lightning.callbacks import EMAWeights, LastCheckpoint, NonFiniteError, NonFiniteStop, ReferenceSync, StepSeed
from rlhf_lightning.callbacks.step_seed import derived_seed
from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.files import recovered, write_atomically
from rlhf_lightning.losses import dpo
from tests.helpers.jobs import Memory, forked, ranks
from tests.helpers.training import Bigram, Builder, examples, loader, micro_batches, preference, trainer


class Poison(L.Callback):
    """Makes one micro-batch's loss, or only its gradient, infinite."""

    def __init__(self, batch: int, part: str, rank: int = 0) -> None:
        self.batch, self.part, self.rank = batch, part, rank

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx == self.batch and trainer.global_rank == self.rank:
            if self.part == "loss":  # its gradient stays finite
                scaled = module.scaled
                module.scaled = lambda losses, batch: scaled(losses, batch) + float("inf")
            else:
                module.policy.head.bias.register_hook(lambda gradient: gradient * float("nan"))


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_non_finite_step_is_not_taken_and_its_rows_are_written(tmp_path, part):
    module = preference(lr=0.1)
    weights: list[torch.Tensor] = []

    class Weights(L.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer) -> None:
            weights.append(module.policy.head.weight.detach().clone())

    callbacks = [Poison(3, part), NonFiniteStop(str(tmp_path / "run")), Weights()]
    run = trainer(tmp_path, callbacks, accumulate_grad_batches=2)
    with pytest.raises(NonFiniteError, match=r"step 1: .*not taken.*nonfinite_step1_rank0\.json"):
        run.fit(module, loader(2, batch=4, parts=2))
    report = json.loads((tmp_path / "run" / "nonfinite_step1_rank0.json").read_text())
    assert report["step"] == 1
    assert [micro["rows"] for micro in report["micro_batches"]] == [
        ["pairs.jsonl:4", "pairs.jsonl:5"],
        ["pairs.jsonl:6", "pairs.jsonl:7"],
    ]
    assert [micro["finite"] for micro in report["micro_batches"]] == [True, part != "loss"]
    assert torch.isfinite(module.policy.head.weight).all()
    assert torch.equal(module.policy.head.weight, weights[-1])


def _poisoned(folder: Path) -> None:
    callbacks = [Poison(1, "loss", rank=1), NonFiniteStop(str(folder))]
    run = trainer(folder, callbacks, devices=2, strategy="ddp")
    with pytest.raises(NonFiniteError):
        run.fit(preference(), loader(3))


def test_every_process_stops_where_one_has_found_something(tmp_path):
    """Fails, by hanging, when only the process with the bad rows raises."""
    assert ranks(2, _poisoned, tmp_path) == [0, 0]
    bad = [json.loads((tmp_path / f"nonfinite_step1_rank{r}.json").read_text())["micro_batches"][0] for r in (0, 1)]
    assert [micro["finite"] for micro in bad] == [True, False]


def test_gradient_norm_is_logged_before_clipping(tmp_path):
    logger = Memory()
    trainer(tmp_path, [NonFiniteStop()], logger=logger, gradient_clip_val=1e-6, max_steps=1).fit(
        preference(), loader(1)
    )
    module = preference()
    module.configure_model()
    module(micro_batches(examples(4), 1)[0]).loss.backward()
    expected = torch.cat([p.grad.flatten() for p in module.policy.parameters()]).norm()
    assert logger.series("train/grad_norm")[0] == pytest.approx(float(expected), rel=1e-5)


def test_step_seed_depends_on_seed_step_and_process(tmp_path):
    draws = []

    class Draw(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            draws.append(float(torch.rand(())))

    for seed in (1, 1, 2):
        torch.manual_seed(len(draws))
        trainer(tmp_path, [StepSeed(seed), Draw()]).fit(preference(), loader(2))
    assert draws[:2] == draws[2:4]
    assert len(set(draws)) == 4
    assert derived_seed(1, 2, 0) != derived_seed(1, 2, 1)
    assert derived_seed(1, 23) != derived_seed(12, 3)
    assert 0 <= derived_seed("any") < 2**63


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_reference_follows_the_policy(tmp_path, alpha):
    """By hand: after two of three steps the reference is alpha * policy + (1 - alpha) * start."""
    module = preference(lr=0.3)
    trainer(tmp_path, [ReferenceSync(every_n_steps=2, alpha=alpha)], max_steps=3).fit(module, loader(3))
    at_two = preference(lr=0.3)
    trainer(tmp_path, max_steps=2).fit(at_two, loader(3))
    expected = alpha * at_two.policy.head.weight + (1 - alpha) * Bigram().head.weight
    torch.testing.assert_close(module.reference.actor.head.weight, expected)
    assert module.reference.refreshed


def test_reference_sync_needs_a_reference_that_can_move(tmp_path):
    module = preference(builder=Builder("cached"))
    with pytest.raises(ValueError, match="reference=frozen"):
        trainer(tmp_path, [ReferenceSync()]).fit(module, loader(1))
    with pytest.raises(ValueError, match="alpha"):
        ReferenceSync(alpha=0.0)


class Seen(L.Callback):
    """Weights at validation, and after it."""

    def __init__(self) -> None:
        self.validation: torch.Tensor | None = None
        self.trained: list[torch.Tensor] = [Bigram().head.weight.detach().clone()]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.trained.append(module.policy.head.weight.detach().clone())

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        self.validation = module.policy.head.weight.detach().clone()


def test_average_is_what_is_validated_and_exported(tmp_path):
    """Fails when validation sees the trained weights, or training continues from the averaged ones."""
    seen = Seen()
    module = preference(lr=0.3)
    run = trainer(tmp_path, [EMAWeights(decay=0.5), seen, LastCheckpoint()])
    run.fit(module, loader(2), loader(1))
    start, first, second = seen.trained
    expected = 0.25 * start + 0.25 * first + 0.5 * second
    torch.testing.assert_close(seen.validation, expected)
    assert torch.equal(module.policy.head.weight, second)
    with module.evaluation_weights():
        torch.testing.assert_close(module.policy.head.weight, expected)
        with module.evaluation_weights():
            torch.testing.assert_close(module.policy.head.weight, expected)
    assert torch.equal(module.policy.head.weight, second)
    other, seen = preference(), Seen()
    trainer(tmp_path, [EMAWeights(decay=0.5), seen]).validate(
        other, loader(1), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", verbose=False
    )
    torch.testing.assert_close(seen.validation, expected)


def test_average_of_half_precision_weights_moves(tmp_path):
    """1 + 1e-3 is no bfloat16 number: fails when the average is kept in the weights' dtype."""
    average = EMAWeights(decay=0.999)
    module = preference(lr=1.0)
    trainer(tmp_path, [average], precision="bf16-true").fit(module, loader(2))
    state = average.state_dict()["weights"]["head.bias"]
    assert state.dtype == torch.float32
    assert not torch.equal(state, state.bfloat16().float())


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"every_n_steps": 0}])
def test_average_options(options):
    with pytest.raises(ValueError, match=r"callbacks\.ema"):
        EMAWeights(**options)


def _killed_while_writing(path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    write_atomically(path, write)


def test_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    write_atomically(path, lambda temporary: temporary.write_bytes(b"whole") and None)
    assert forked(_killed_while_writing, path) == -signal.SIGKILL
    assert path.read_bytes() == b"whole"
    write_atomically(path, lambda temporary: temporary.write_bytes(b"next") and None)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]  # what was left half is gone
    assert path.read_bytes() == b"next"


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    def full(checkpoint, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        io.save_checkpoint({"step": 2}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_folder_is_replaced_and_recovered(tmp_path):
    def folder(text: str):
        def write(temporary: Path) -> None:
            temporary.mkdir()
            (temporary / "shard").write_text(text)

        return write

    path = tmp_path / "last.ckpt"
    write_atomically(path, folder("one"))
    write_atomically(path, folder("two"))
    assert (path / "shard").read_text() == "two"
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    path.rename(tmp_path / "last.ckpt.old")  # a kill between the two renames
    assert (recovered(path) / "shard").read_text() == "two"


@pytest.mark.parametrize(("options", "saves"), [({"every_n_steps": 2}, 2), ({"every_n_steps": None}, 1)])
def test_last_checkpoint_saves_every_n_steps_and_at_the_end(tmp_path, options, saves):
    paths = []

    class Count(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
            paths.append(path)
            super().save_checkpoint(checkpoint, path)

    trainer(tmp_path, [LastCheckpoint(**options)], plugins=[Count()]).fit(preference(), loader(3))
    assert len(paths) == saves
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_last_checkpoint_saves_by_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rlhf_lightning.callbacks.last_checkpoint.time.monotonic", lambda: now[0])

    class Minutes(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            now[0] += 40.0
            assert (tmp_path / "checkpoints" / "last.ckpt").exists() == (trainer.global_step >= 2)

    callback = LastCheckpoint(every_n_steps=None, every_n_minutes=1.0)
    trainer(tmp_path, [Minutes(), callback]).fit(preference(partial(dpo, beta=0.1)), loader(3))
