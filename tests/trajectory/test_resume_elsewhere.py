"""A run that is killed and resumed on other processes, another accumulation or another strategy: the same steps."""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.jobs import differences, final_state, fit, forked, ranks

#: Six steps an epoch, the last one of a single row.
ROWS = {"groups": 41, "batch_size": 8}
EPOCHS, STEPS = 2, 12

#: Processes and options of each way to run.
CUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "8x1": (1, {}),
    "2x4": (1, {"accumulate_grad_batches": 4}),
    "two": (2, {"devices": 2, "strategy": "ddp"}),
    "two, 2x2": (2, {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2}),
}
STRATEGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {"accumulate_grad_batches": 2}),
    "ddp": (2, {"devices": 2, "strategy": "ddp"}),
    "fsdp file": (2, {"devices": 2, "strategy": FSDP2Strategy}),
    "fsdp sharded": (2, {"devices": 2, "strategy": partial(FSDP2Strategy, save_distributed_checkpoint=True)}),
}


class Trained(L.Callback):
    """Writes down which rows each step was trained on, and the final weights, whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        line = json.dumps([trainer.global_step, batch.index.tolist()])
        with (self.folder / f"rows{trainer.global_rank}.jsonl").open("a") as file:
            file.write(line + "\n")

    def on_train_end(self, trainer, module) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(module.policy, options=options)
        if trainer.is_global_zero:
            torch.save({"weights": weights, "step": trainer.global_step}, self.folder / "end.pt")


def run(folder: Path, way: tuple[int, dict[str, Any]], kill_at: int | None = None) -> None:
    """A run, or the rest of one, that ends as it should: with its last step or with a kill."""
    processes, options = way
    folder.mkdir(exist_ok=True)
    options = {"max_epochs": EPOCHS, "rows": ROWS, "callbacks": (Trained(folder),), **options}
    arguments = fit, folder, "tiny", kill_at
    codes = [forked(*arguments, **options)] if processes == 1 else ranks(processes, *arguments, **options)
    assert codes == [0 if kill_at is None else -signal.SIGKILL] * processes


def rows_of(folder: Path) -> dict[int, list[int]]:
    """The rows of each step, of all processes; of a step that was taken again those of the last time."""
    steps: dict[int, list[int]] = defaultdict(list)
    for file in sorted(folder.glob("rows*.jsonl")):
        for line in file.read_text().splitlines():
            step, rows = json.loads(line)
            steps[step] += rows
    return {step: sorted(rows) for step, rows in steps.items()}


def end(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "end.pt")


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["step"] == other["step"] == STEPS
    for name, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], weight, atol=1e-4, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(folder, CUTS["8x1"])
    return folder


@pytest.mark.parametrize(
    ("first", "then", "kill_at"),
    [
        ("8x1", "two, 2x2", 9),  # the last save is at step 8, in the middle of the second epoch
        ("two, 2x2", "8x1", 7),  # at step 6, the last of an epoch
        pytest.param("two", "2x4", 3, marks=pytest.mark.slow),
        pytest.param("2x4", "two", 7, marks=pytest.mark.slow),
    ],
)
def test_another_cut_takes_the_same_steps(tmp_path, single, first, then, kill_at):
    """Fails when a position is counted in micro-batches: rows come twice or never, or an epoch has another length."""
    run(tmp_path, CUTS[first], kill_at)
    for file in tmp_path.glob("rows*.jsonl"):
        file.unlink()
    run(tmp_path, CUTS[then])
    saved = kill_at - 1
    expected = rows_of(single)
    assert [len(expected[step]) for step in range(STEPS)] == [8, 8, 8, 8, 8, 1] * 2
    assert rows_of(tmp_path) == {step: rows for step, rows in expected.items() if step >= saved}
    assert_close(end(single), end(tmp_path))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, way in STRATEGIES.items():
        folders[name] = tmp_path_factory.mktemp("unbroken")
        run(folders[name], way)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("then", STRATEGIES)
@pytest.mark.parametrize("first", STRATEGIES)
def test_checkpoints_of_every_strategy_under_every_other(tmp_path, unbroken, first, then):
    """Bit for bit under the same strategy, to rounding under another one, or refused with the way out."""
    run(tmp_path, STRATEGIES[first], 9)
    processes, options = STRATEGIES[then]
    if first == "fsdp sharded" and not then.startswith("fsdp"):
        if then == "single":
            with pytest.raises(ValueError, match=r"sharded checkpoint.*strategy=fsdp .*every strategy reads"):
                fit(tmp_path, "tiny", max_epochs=EPOCHS, rows=ROWS, **options)
        else:
            assert ranks(processes, fit, tmp_path, "tiny", max_epochs=EPOCHS, rows=ROWS, **options) == [1] * processes
        run(tmp_path, STRATEGIES["fsdp file"], 11)  # the way out: saves a file at step 10
    run(tmp_path, STRATEGIES[then])
    assert_close(end(unbroken["single"]), end(tmp_path))
    if first == then:
        assert differences(end(unbroken[first]), end(tmp_path)) == []
    if first == then and first != "fsdp sharded":
        assert differences(final_state(unbroken[first]), final_state(tmp_path)) == []
