"""Predictions of ``rlhf plan`` beside what a run measured, on one and two processes of a CPU.

    python benchmarks/plan.py [sft dpo dpo_lora dpo_ddp grpo] [--steps 4]

Rates are measured first. Every setting is a run of its own with random weights on one thread. Seconds are CPU seconds
of process 0, the mean of its steps after the first; the plan is for the tokens that these steps had. In the prediction
``efficiency`` is 1, so that predicted by measured seconds is the share of the matrix rate that a step reached. Memory
is what training added to the process: gradients, optimiser state, activations and the head.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from predicted_memory import MODEL
from predicted_memory import SETTINGS as OPTIONS

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.plan_job import job_of
from rlhf_lightning.planning import Cost, Rates, Strategy, measured_rates, plan

SETTINGS: dict[str, tuple[Strategy, list[str]]] = {
    **{name: ("single", OPTIONS[name]) for name in ("sft", "dpo", "dpo_lora", "grpo")},
    "dpo_ddp": ("ddp", [*OPTIONS["dpo"], "strategy=ddp", "strategy.devices=2"]),
}


@dataclass(frozen=True)
class Measured:
    """A run's steps after the first one, of process 0, and the bytes that training added to it."""

    seconds: float  #: CPU seconds of a step
    tokens: float  #: of its micro-batch
    groups: float
    added: float


def measure(options: list[str], steps: int) -> Measured:
    """Train for some steps in a process of its own.

    Raises:
        RuntimeError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        clock = ["callbacks=none", f"+callbacks.clock.path={folder}/clock.json", "allow_targets=[plan_clock]"]
        clock.append("+callbacks.clock._target_=plan_clock.CpuClock")
        common = [f"paths.output_dir={folder}/run", f"trainer.max_steps={steps}", "logger=none", *clock]
        command = [sys.executable, "-m", "rlhf_lightning.cli.main", "train", *MODEL, *options, *common]
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        file = Path(folder) / "clock.json"
        if done.returncode or not file.is_file():
            raise RuntimeError((done.stdout + done.stderr)[-2000:])
        facts = json.loads(file.read_text())
    later = facts["steps"][1:]
    mean = {name: statistics.mean(step[name] for step in later) for name in ("tokens", "groups")}
    return Measured(statistics.mean(step["seconds"] for step in later), mean["tokens"], mean["groups"], facts["added"])


def predict(options: list[str], strategy: Strategy, measured: Measured, rates: Rates) -> Cost:
    """The plan of a step of the size that was measured; of pairs, prompts are taken to be as long as responses."""
    devices = 2 if strategy == "ddp" else 1
    job = job_of(compose("train", [*MODEL, *options]), 1, None, processor=True)
    a_group = measured.tokens / measured.groups
    if job.draws is None:
        prompt = response = round(a_group / (1 + job.responses))
    else:
        response = job.response
        prompt = max(round(a_group - job.responses * response), 1)
    groups = round(measured.groups * devices)
    return plan(replace(job, groups=groups, prompt=prompt, response=response), strategy, devices, rates)


def main() -> None:
    """Print predicted beside measured of the settings that are named; of all without a name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=", ".join(SETTINGS))
    parser.add_argument("--steps", type=int, default=4, help="the first one is not counted")
    given = parser.parse_args()
    if given.steps < 2:
        parser.error("--steps must be at least 2: the first one is not counted")
    if wrong := sorted({*given.settings} - SETTINGS.keys()):
        parser.error(f"no setting {wrong[0]}; there are {', '.join(SETTINGS)}")
    torch.set_num_threads(1)
    rates = Rates(*measured_rates(clock=time.process_time), efficiency=1.0)
    print(
        f"products {rates.flops / 1e9:.0f} GFLOP/s, memory {rates.bandwidth / 2**30:.1f} GiB/s, one thread, CPU seconds"
    )
    columns = ("setting", "tokens", "predicted s", "measured s", "share", "predicted MiB", "added MiB", "ratio")
    print("".join(f"{name:>14}" for name in columns))
    for name in given.settings or SETTINGS:
        strategy, options = SETTINGS[name]
        measured = measure(options, given.steps)
        cost = predict(options, strategy, measured, rates)
        memory = cost.memory
        added = memory.gradients + memory.optimizer + memory.activations + memory.head
        print(
            f"{name:>14}{measured.tokens:>14.0f}{cost.step:>14.2f}{measured.seconds:>14.2f}"
            f"{cost.step / measured.seconds:>14.2f}{added / 2**20:>14.0f}{measured.added / 2**20:>14.0f}"
            f"{added / measured.added:>14.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
