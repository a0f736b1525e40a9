"""The Fabric example takes the Trainer's steps, in one process and in two."""

from __future__ import annotations

import importlib.util
import io
import math
import tokenize
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from rlhf_lightning.data import AlignmentDataModule, Packaged
from rlhf_lightning.losses import dpo
from rlhf_lightning.methods import Preference
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from tests.helpers.jobs import Memory, in_processes
from tests.helpers.training import trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "fabric_dpo.py"
STEPS, GROUPS = 3, 4


def example():
    spec = importlib.util.spec_from_file_location("fabric_dpo", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fabric_losses(folder: Path | None = None, devices: int = 1, precision: str = "32-true") -> list[float]:
    fabric = L.Fabric(accelerator="cpu", devices=devices, precision=precision)
    fabric.launch()
    losses = example().main(fabric, STEPS, GROUPS)
    if folder is not None and fabric.global_rank == 0:
        torch.save({"losses": losses}, folder / "trajectory.pt")
    return losses


def trainer_losses(folder: Path) -> list[float]:
    builder = ModelBuilder(TinyRandom())
    module = Preference(builder, partial(dpo, beta=0.1), partial(torch.optim.AdamW, lr=1e-4))
    data = AlignmentDataModule(Packaged("smollm2_pairs"), builder.tokenizer(), batch_size=GROUPS)
    logger = Memory()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "max_steps": STEPS}
    trainer(folder, logger=logger, **options).fit(module, datamodule=data)
    return logger.series("train/loss")


def test_fabric_is_trainer(tmp_path):
    expected = trainer_losses(tmp_path)
    losses = fabric_losses()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses == pytest.approx(expected, abs=1e-6)
    parallel = in_processes(2, tmp_path, fabric_losses, tmp_path, 2)["losses"]
    assert parallel == pytest.approx(expected, abs=1e-5)


def test_mixed_precision_under_fabric():
    losses = fabric_losses(precision="bf16-mixed")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert all(math.isfinite(loss) for loss in losses)


def test_example_is_at_most_40_lines_of_code():
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines, start = set(), True
    for token in tokenize.generate_tokens(io.StringIO(EXAMPLE.read_text()).readline):
        docstring = token.type == tokenize.STRING and start
        start = token.type in skipped
        if token.type not in skipped and not docstring:
            lines.update(range(token.start[0], token.end[0] + 1))
    assert len(lines) <= 40
