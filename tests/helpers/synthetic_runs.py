"""Folders that look like those of runs, with made-up numbers: for the report's tests and to time it on many runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

#: method -> (module, family, gold reward that it ends at, divergence it ends at)
METHODS = {
    "dpo": ("Preference", "log-ratio difference", 2.1, 14.0),
    "ipo": ("Preference", "log-ratio difference", 1.7, 7.0),
    "hinge": ("Preference", "log-ratio difference", 1.9, 11.0),
    "exo": ("Preference", "log-ratio difference", 2.0, 13.0),
    "nca": ("Preference", "each response on its own", 1.5, 5.0),
    "apo_zero": ("Preference", "each response on its own", 2.0, 12.5),
    "sppo": ("Preference", "each response on its own", 1.8, 9.5),
    "simpo": ("Preference", "without a reference", 2.4, 31.0),
    "orpo": ("Preference", "without a reference", 1.4, 9.0),
    "cpo": ("Preference", "without a reference", 2.2, 24.0),
    "kto": ("Unpaired", "unpaired", 1.9, 10.5),
    "bco": ("Unpaired", "unpaired", 1.8, 8.0),
    "pro": ("Ranked", "ranked", 2.0, 15.0),
    "rrhf": ("Ranked", "ranked", 1.2, 6.0),
    "unlikelihood": ("Judged", "token level", 0.9, 18.0),
    "sft": ("Supervised", "supervised", 0.8, 3.0),
}
PROMPTS = ("Name a colour.", "What is 2 + 2?", 'Write <b>bold</b> & "quoted" text.')


def config(method: str, seed: int, folder: Path, **options: Any) -> dict[str, Any]:
    """A resolved configuration; ``beta`` and ``lr`` among the options."""
    loss = {"_target_": f"rlhf_lightning.losses.{method}", "_partial_": True, "beta": options.get("beta", 0.1)}
    return {
        "method": {"_target_": f"rlhf_lightning.methods.{METHODS[method][0]}", "_partial_": True, "loss": loss},
        "model": {"_target_": "rlhf_lightning.models.sources.TinyRandom", "seed": 0},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": options.get("lr", 1e-3), "betas": [0.9, 0.999]},
        "callbacks": {"step_seed": {"seed": seed}, "samples": {"folder": f"{folder}/samples", "seed": seed}},
        "paths": {"output_dir": str(folder), "runs": "runs"},
        "data": {"source": {"path": "pairs.jsonl", "seed": seed}},
        "trainer": {"max_steps": 200},
        "seed": seed,
    }


def write_run(
    folder: Path,
    method: str = "dpo",
    seed: int = 1,
    *,
    steps: int = 200,
    status: str | None = "done",
    error: str | None = None,
    **options: Any,
) -> Path:
    """One run; ``status`` None leaves no ``result.json``, as a run that was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(method, seed, folder, **options), sort_keys=False))
    rng = np.random.default_rng([seed, steps, *method.encode()])
    scale = math.sqrt(options.get("beta", 0.1) / 0.1)
    last = steps if status == "done" else steps // 3
    rows = [_metrics(step, steps, method, rng, scale) for step in range(last)]
    columns = sorted({name for row in rows for name in row} - {"step"})
    lines = [",".join(["step", *columns])]
    lines += [",".join([str(row["step"]), *(str(row.get(name, "")) for name in columns)]) for row in rows]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    _write_samples(folder, method, rng, last)
    _write_rewards(folder, method, rng)
    if status is not None:
        final = {name: value for row in rows for name, value in row.items() if name != "step"}
        result = {"status": status, "optimized_metric": None, "value": None, "metrics": final, "steps": last}
        result |= {"seconds": 12.5, "error": error, "overrides": [f"method={method}", f"seed={seed}"]}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_sweep(root: Path, methods: list[str], seeds: int = 3, **axes: list[float]) -> Path:
    """Every method by every value of every axis by seeds; every 17th job fails, every 23rd is killed."""
    points: list[dict[str, float]] = [{}]
    for name, values in axes.items():
        points = [{**point, name: value} for point in points for value in values]
    jobs = [(method, seed, point) for method in methods for point in points for seed in range(1, seeds + 1)]
    for number, (method, seed, point) in enumerate(jobs):
        status = "failed" if number % 17 == 16 else None if number % 23 == 22 else "done"
        error = "the loss is not finite at step 66" if status == "failed" else None
        write_run(root / str(number), method, seed, status=status, error=error, **point)
    return root


def _metrics(step: int, steps: int, method: str, rng: np.random.Generator, scale: float) -> dict[str, float]:
    _, _, reward, divergence = METHODS[method]
    part = 1 - math.exp(-4 * (step + 1) / steps)
    noise = rng.normal(size=6)
    row: dict[str, float] = {
        "step": step,
        "train/loss": 0.69 - 0.4 * part + 0.05 * noise[0],
        "train/grad_norm": 2.0 + abs(noise[1]),
        "train/reward/accuracy": min(1.0, 0.5 + 0.4 * part + 0.05 * noise[2]),
        "train/reward/margin": 1.5 * part * scale + 0.2 * noise[3],
    }
    if (step + 1) % 20 == 0:
        kl = divergence / scale * part**2
        row |= {
            "val/gold/reward": reward * part - 0.02 * kl / scale + 0.06 * noise[4],
            "val/gold/kl": kl * (1 + 0.05 * noise[5]),
            "val/loss": 0.69 - 0.35 * part,
            "val/reward/accuracy": min(1.0, 0.55 + 0.3 * part + 0.02 * noise[2]),
        }
    return row


def _write_samples(folder: Path, method: str, rng: np.random.Generator, last: int) -> None:
    (folder / "samples").mkdir(exist_ok=True)
    words = (
        "blue",
        "four",
        "a long answer",
        "<script>alert(1)</script>",
        "maybe",
        "café",
        "\u202eright to left",
        "\x07",
    )
    for step in (0, last):
        rows = []
        for index, prompt in enumerate(PROMPTS):
            text = " ".join(rng.choice(words, size=rng.integers(3, 12)).tolist())
            row = {"step": step, "row": f"pairs.jsonl:{index}", "prompt": prompt, "response": f"{method}: {text}"}
            rows.append({**row, "data": "blue", "tokens": 9, "finished": index != 1, "kl": 0.5 * step, "index": index})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "samples" / f"step_{step:08d}.jsonl").write_text(text)


def _write_rewards(folder: Path, method: str, rng: np.random.Generator) -> None:
    if METHODS[method][0] != "Preference":
        return
    chosen, rejected = rng.normal(0.4, 1, 200), rng.normal(-0.5, 1.2, 200)
    arrays = {"index": np.arange(200), "chosen": chosen.astype(np.float32), "rejected": rejected.astype(np.float32)}
    np.savez_compressed(folder / "implicit_rewards.npz", step=np.int64(200), **arrays)
