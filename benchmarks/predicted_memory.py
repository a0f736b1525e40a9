"""Peak memory of a process on a CPU: what ``rlhf train`` predicts beside what the system measured.

    python benchmarks/predicted_memory.py [sft dpo dpo_lora grpo ppo]

Each setting is a process of its own that takes two steps with a model of random weights.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = [
    "model=tiny_random",
    "model.hidden_size=512",
    "model.layers=8",
    "model.heads=8",
    "model.kv_heads=8",
    "model.intermediate_size=1536",
    "trainer.accelerator=cpu",
]
PAIRS = ["data=smollm2_pairs", "data.batch_size=4"]
DRAWN = ["data=sentiment_prompts", "reward=length", "rollout.max_new_tokens=64", "data.batch_size=4"]
SETTINGS = {
    "sft": ["method=preferred_ft", *PAIRS],
    "dpo": ["method=dpo", *PAIRS],
    "dpo_lora": ["method=dpo", "adapter=lora", *PAIRS],
    "grpo": ["method=grpo", *DRAWN],
    "ppo": ["method=ppo", *DRAWN],
}
UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
PREDICTED = re.compile(r"of the process ([\d.e+]+) (GiB|MiB|KiB)")


def measure(options: list[str]) -> tuple[float, float]:
    """Bytes that one run predicted and its peak.

    Raises:
        RuntimeError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        common = [f"paths.output_dir={folder}/run", "trainer.max_steps=2", "callbacks=none", "logger=none"]
        command = [sys.executable, "-m", "rlhf_lightning.cli.main", "train", *MODEL, *options, *common]
        printed = Path(folder) / "printed.txt"
        with printed.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            peak = 0.0
            while process.poll() is None:
                peak = max(peak, high_water(process.pid))
                time.sleep(0.02)
        text = printed.read_text()
    match = PREDICTED.search(text)
    if process.returncode or match is None:
        raise RuntimeError(text[-2000:])
    return float(match[1]) * UNITS[match[2]], peak


def high_water(pid: int) -> float:
    """Bytes of the largest resident size that a process has had; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    return 0.0 if line is None else float(line.split()[1]) * 1024


def main() -> None:
    """Measure the settings that are named; all of them without a name."""
    print(f"{'setting':<10}{'predicted':>12}{'peak':>12}{'ratio':>8}")
    for name in sys.argv[1:] or SETTINGS:
        predicted, peak = measure(SETTINGS[name])
        print(f"{name:<10}{predicted / 2**20:>8.0f} MiB{peak / 2**20:>8.0f} MiB{predicted / peak:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
