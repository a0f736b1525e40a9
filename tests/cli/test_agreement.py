"""Comparison of processes before loading: all of them report what one of them sees differently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli import agreement
from rlhf_lightning.cli.agreement import (
    agreed,
    check_files_exist,
    check_readable,
    check_same,
    check_same_job,
    check_seen,
    meet,
)
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.jobs import ranks
from tests.helpers.training import preference

QUIET = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "accelerator": "cpu",
}  # fmt: skip


def compared(folder: Path) -> None:
    """Messages of two processes on one machine, each with its own folder instead of a shared one."""
    trainer = Trainer(strategy="ddp", devices=2, **QUIET)
    trainer.strategy.connect(preference())
    trainer.strategy.setup_environment()
    rank = trainer.global_rank
    check_seen(trainer, folder / "shared", "paths.output_dir")
    check_same(trainer, {"the training data": "same"})
    assert agreed(trainer, f"decided by {rank}") == "decided by 0"
    assert not list((folder / "shared").iterdir())
    (folder / str(rank)).mkdir(exist_ok=True)
    checkpoint = folder / str(rank) / "last.ckpt"
    if rank == 0:
        checkpoint.touch()
    messages = []
    for check, given in (
        (check_seen, (folder / str(rank), "paths.output_dir")),
        (check_files_exist, ([checkpoint],)),
        (check_same, ({"the training data": str(rank), "the validation data": "same"},)),
    ):
        try:
            check(trainer, *given)
        except ConfigError as error:
            messages.append(str(error))
    torch.save(messages, folder / f"messages{rank}.pt")


def test_every_process_reports_what_one_does_not_see(tmp_path, monkeypatch):
    """Fails when each decides for itself: one would begin from scratch, the other resume, and both wait."""
    monkeypatch.setattr("rlhf_lightning.cli.agreement._PATIENCE", 0.3)
    assert ranks(2, compared, tmp_path) == [0, 0]
    messages = torch.load(tmp_path / "messages0.pt")
    assert messages == torch.load(tmp_path / "messages1.pt")
    folder, checkpoint, data = messages
    assert folder.startswith(f"paths.output_dir={tmp_path}/0: rank 1 on ")
    assert f"(it has {tmp_path}/1)" in folder
    assert f"does not find {tmp_path}/1/last.ckpt" in checkpoint
    assert data.startswith("the training data: rank 1 on ")


def jobs_compared(folder: Path) -> None:
    """Messages of two processes: the same job, another option, another version of the code."""
    trainer = Trainer(strategy="ddp", devices=2, **QUIET)
    trainer.strategy.connect(preference())
    trainer.strategy.setup_environment()
    rank = trainer.global_rank

    def job(number: int, **changes: object) -> DictConfig:
        paths = {"output_dir": f"/mnt/{number}/run", "runs": f"/mnt/{number}"}
        return OmegaConf.create(
            {"paths": paths, "log": f"/mnt/{number}/run/log", "trainer": {"max_steps": 3} | changes}
        )

    check_same_job(job(rank))  # folders may lie elsewhere
    messages = []
    try:
        check_same_job(job(rank, max_steps=3 + rank))
    except ConfigError as error:
        messages.append(str(error))
    agreement.source_digest = lambda: f"digest{rank}"
    try:
        check_same_job(job(rank))
    except ConfigError as error:
        messages.append(str(error))
    torch.save(messages, folder / f"messages{rank}.pt")


def test_other_options_and_versions_are_refused_with_both_values(tmp_path):
    """Also an option that may change when a run is resumed: one process would wait for the other for ever."""
    assert ranks(2, jobs_compared, tmp_path) == [0, 0]
    messages = torch.load(tmp_path / "messages0.pt")
    assert messages == torch.load(tmp_path / "messages1.pt")
    options, code = messages
    assert options.startswith("rank 1 on ")
    assert "trainer.max_steps: 3 -> 4 (rank 0 -> this rank); give the same command" in options
    assert "source of rlhf-lightning: digest0 -> digest1 (rank 0 -> this rank)" in code


def test_one_process_has_nothing_to_compare(tmp_path):
    trainer = Trainer(devices=1, **QUIET)
    meet(trainer, preference())
    check_seen(trainer, tmp_path, "paths.output_dir")
    check_same(trainer, {})
    check_files_exist(trainer, [tmp_path / "none"])
    assert agreed(trainer, 3) == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_a_sharded_checkpoint_names_its_way_out(tmp_path, strategy):
    trainer = Trainer(devices=1, strategy=strategy, **QUIET)
    message = r"sharded checkpoint.*strategy=fsdp strategy\.devices=<n>.*save_distributed_checkpoint=false"
    with pytest.raises(ConfigError, match=message):
        check_readable(trainer, str(tmp_path))
    check_readable(trainer, str(tmp_path / "file.ckpt"))
    check_readable(trainer, None)
    check_readable(Trainer(devices=1, strategy=FSDP2Strategy(), **QUIET), str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["strategy=ddp", "strategy.timeout=0"], "0 is no number of seconds above 0"),
        (["strategy=ddp", "strategy.timeout=soon"], "strategy.timeout"),
        (["strategy=fsdp", "strategy.timeout=inf"], "strategy.timeout: expected a number, got inf"),
        (["strategy=single", "++strategy.timeout=60"], "choose strategy=ddp or strategy=fsdp"),
    ],
)
def test_times_that_cannot_be_waited_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        compose("train", options)
