"""Cost against size: memory that stays flat or grows linearly, time that grows as the work does.

    python benchmarks/scaling.py [response rows vocabulary duration] [--rows 10000 100000] [--minutes 5]

Every line is a process of its own on one thread. ``seconds`` are CPU seconds, ``MiB`` what the work added to the
process's resident size, ``largest`` the largest tensor that any operation made (a square of the sequence, or tokens
x vocabulary, would show there).

- ``response``: one training step of a small model on one response of so many tokens, activation checkpointing off. The
  products of attention grow with the square of the length, so seconds do in the end; memory is linear.
- ``rows``: a file of so many pairs, made on the spot: tokenised, planned, and ten batches loaded.
- ``vocabulary``: the head's log-probs of 512 tokens and their gradients. Weight and gradient are linear in it.
- ``duration``: the resident size of a run of ``--minutes``, at ten moments of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_lightning.data import DataSpec, Files
from rlhf_lightning.data.batches.loader import ListLoader
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.ops.log_probs import log_probs
from rlhf_lightning.types import PackedBatch, StepTotals

SIZES = {
    "response": (2048, 4096, 8192, 16384),
    "rows": (10_000, 100_000, 1_000_000),
    "vocabulary": (8192, 32_768, 131_072),
}
MIB = 2**20


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation makes; views count what they show."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return made


def response_step(tokens: int) -> Callable[[], None]:
    """A training step on one prompt of 16 tokens and a response of so many."""
    source = TinyRandom(hidden_size=128, layers=2, heads=4, kv_heads=4, intermediate_size=384, max_length=2**17)
    policy: Any = ModelBuilder(source, None, "none")().policy
    batch = one_response(16, tokens)

    def step() -> None:
        policy(batch).token.mean().backward()

    return step


def one_response(prompt: int, tokens: int) -> PackedBatch:
    """A batch of one prompt and one response."""
    total = prompt + tokens
    target = torch.arange(prompt, total)
    return PackedBatch(
        ids=torch.arange(total) % 250,
        positions=torch.arange(total),
        prompt_span=torch.tensor([[0, prompt]]),
        response_span=torch.tensor([[prompt, total]]),
        parent=torch.zeros(1, dtype=torch.long),
        target=target,
        source=target - 1,
        sequence=torch.zeros(tokens, dtype=torch.long),
        index=torch.zeros(1, dtype=torch.long),
        totals=StepTotals(groups=1, slot_tokens=(tokens,)),
    )


def head_step(vocabulary: int) -> Callable[[], None]:
    """Log-probs of 512 tokens and their gradients."""
    weight = torch.randn(vocabulary, 64, requires_grad=True)
    hidden = torch.randn(512, 64, requires_grad=True)
    target = torch.arange(512) * 7 % vocabulary

    def step() -> None:
        log_probs(hidden, weight, target).log_prob.mean().backward()

    return step


def pairs_file(path: Path, rows: int) -> None:
    """Pairs of short texts, every prompt another one."""
    with path.open("w") as file:
        for row in range(rows):
            prompt = f"What is {row} plus {row % 97}?"
            file.write(json.dumps({"prompt": prompt, "chosen": f" {row + row % 97}.", "rejected": " No idea."}) + "\n")


def data_step(rows: int, folder: Path) -> Callable[[], None]:
    """Tokenise a file, plan its steps, load ten of them."""
    path = folder / "pairs.jsonl"
    pairs_file(path, rows)

    def step() -> None:
        spec = DataSpec(cache_dir=str(folder))
        data = AlignmentDataModule(Files(str(path)), TinyRandom().tokenizer(), "preference", spec=spec, batch_size=32)
        data.setup("fit")
        loader: ListLoader = data.train_dataloader()
        for number, _ in enumerate(loader, 1):
            if number == 10:
                break

    return step


def worker(name: str, size: int) -> dict[str, float]:
    """CPU seconds, bytes that the work added, and the largest tensor, of one size in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, Callable[[int], Callable[[], None]]] = {
            "response": response_step,
            "vocabulary": head_step,
            "rows": lambda rows: data_step(rows, Path(folder)),
        }
        warm = makers[name](64 if name == "response" else 256)
        warm()  # imports, thread pools and kernels are no part of the size
        step = makers[name](size)
        held, since = resident(os.getpid()), time.process_time()
        reset_peak()
        step()
        seconds, peak = time.process_time() - since, peak_resident()
        largest = 0 if name == "rows" else largest_tensor(step)
    return {"seconds": seconds, "bytes": peak - held, "largest": largest}


def largest_tensor(step: Callable[[], None]) -> int:
    """Bytes of the largest tensor of a step."""
    with Largest() as seen:
        step()
    return seen.bytes


def resident(pid: int) -> int:
    """Bytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def reset_peak() -> None:
    """Let the kernel count the process's peak from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Bytes of the largest resident size since :func:`reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def measure(name: str, size: int) -> dict[str, float]:
    """Result of :func:`worker` in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, __file__, "--worker", name, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(name: str, sizes: tuple[int, ...], measured: Callable[[str, int], dict[str, float]]) -> Iterator[str]:
    """Lines of a table: each size beside the smallest one."""
    yield f"{name:>12}{'seconds':>10}{'MiB':>10}{'largest MiB':>13}{'size x':>9}{'seconds x':>11}{'MiB x':>8}"
    first: dict[str, float] = {}
    for size in sizes:
        one = measured(name, size)
        first = first or one
        times = one["seconds"] / max(first["seconds"], 1e-9)
        grown = one["bytes"] / max(first["bytes"], 1)
        yield (
            f"{size:>12}{one['seconds']:>10.2f}{one['bytes'] / MIB:>10.1f}{one['largest'] / MIB:>13.1f}"
            f"{size / sizes[0]:>9.1f}{times:>11.2f}{grown:>8.2f}"
        )


def duration(minutes: float, moments: int = 10) -> Iterator[str]:
    """Lines of a run's resident size over its time: DPO of a small model on pairs of many lengths."""
    with tempfile.TemporaryDirectory() as folder:
        hours, rest = divmod(minutes * 60, 3600)
        limit = f"00:{hours:02.0f}:{rest // 60:02.0f}:{rest % 60:02.0f}"
        options = ["model=tiny_random", "method=dpo", "data=smollm2_pairs", "data.batch_size=4", "callbacks=none"]
        options += [f"paths.output_dir={folder}/run", f"trainer.max_time='{limit}'", "trainer.max_epochs=100000"]
        options += ["trainer.accelerator=cpu", "trainer.limit_val_batches=0", "scheduler=constant"]
        command = [sys.executable, "-m", "rlhf_lightning.cli.main", "train", *options]
        with (Path(folder) / "printed.txt").open("w+") as printed:
            process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
            yield f"{'minute':>12}{'MiB':>10}"
            start, wait = time.monotonic(), minutes * 60 / moments
            for moment in range(1, moments + 1):
                while time.monotonic() < start + moment * wait and process.poll() is None:
                    time.sleep(0.2)
                if process.poll() is not None:
                    break
                yield f"{(time.monotonic() - start) / 60:>12.2f}{resident(process.pid) / MIB:>10.1f}"
            if process.wait():
                printed.seek(0)
                raise RuntimeError(printed.read()[-2000:])
        yield f"steps: {steps(Path(folder))}"


def steps(folder: Path) -> int:
    """Optimiser steps of the run in a folder."""
    return int(json.loads(next(folder.rglob("result.json")).read_text())["steps"])


def main() -> None:
    """Print the tables that are named; all of them without a name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join([*SIZES, "duration"]))
    for name, sizes in SIZES.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=sizes)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(worker(given.worker[0], int(given.worker[1]))))
        return
    for name in given.tables or [*SIZES, "duration"]:
        lines = duration(given.minutes) if name == "duration" else table(name, tuple(getattr(given, name)), measure)
        for line in lines:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
