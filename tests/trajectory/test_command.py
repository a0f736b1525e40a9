"""The command itself, killed and given again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.jobs import differences

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "model=tiny_random", "adapter=lora", "adapter.dropout=0.2", "reference=frozen", "method=bco_pair",
    "trainer.accelerator=cpu", "trainer.max_steps=12", "trainer.accumulate_grad_batches=2", "data.batch_size=8",
    "data.source.limit=40", "data.validation.limit=8", "trainer.val_check_interval=1.0", "trainer.max_epochs=3",
    "callbacks=[default,ema,reference_sync]", "callbacks.reference_sync.every_n_steps=3",
    "callbacks.last.every_n_steps=1", "callbacks.samples=null", "callbacks.export=null",
]  # fmt: skip


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "rlhf_lightning.cli.main",
        "train",
        *OPTIONS,
        f"paths.output_dir={folder}",
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RLHF_CACHE": str(folder.parent / "cache")}
    return subprocess.Popen(command, env=environment, cwd=folder.parent)


def end(process: subprocess.Popen[bytes], folder: Path, number: signal.Signals) -> int:
    """Send a signal as soon as there is a checkpoint."""
    last = folder / "checkpoints" / "last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(60)


def final(folder: Path) -> dict:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state["callbacks"] = {name: value for name, value in state["callbacks"].items() if "ModelCheckpoint" not in name}
    return state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "number", "code"),
    [("single", signal.SIGKILL, -9), ("single", signal.SIGTERM, 143), ("ddp", signal.SIGTERM, 143)],
)
def test_the_same_command_resumes(tmp_path, strategy, number, code):
    options = [f"strategy={strategy}", f"strategy.devices={1 if strategy == 'single' else 2}"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, *options).wait(200) == 0
    assert end(start(cut, *options), cut, number) == code
    assert 0 < final(cut)["global_step"] < 12
    assert start(cut, *options).wait(200) == 0
    assert final(whole)["global_step"] == 12
    assert differences(final(whole), final(cut)) == []
