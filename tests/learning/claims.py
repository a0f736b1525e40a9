"""Common parts of tests of papers' claims: runs with several seeds, what they logged, and what they drew."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning import compose, train
from rlhf_lightning.claims.case import GOLD
from rlhf_lightning.cli.results import Result

SEEDS = (1, 2, 3)
COMMON = ("experiment=tiny", "ckpt_path=null")


def run(folder: Path, seed: int, *options: str) -> dict[str, float]:
    """Metrics of the ``result.json`` of ``rlhf train experiment=tiny`` with options."""
    train(compose("train", [*COMMON, *options, f"seed={seed}", f"paths.output_dir={folder}"]))
    result = Result.read(folder)
    assert result is not None
    return result.metrics


def golds(folder: Path, *options: str, seeds: Sequence[int] = SEEDS) -> list[float]:
    """Gold reward at the end of a run with each seed; its mean over samples has a standard error of 0.09 points."""
    return [run(folder / str(seed), seed, *options)[GOLD] for seed in seeds]


def column(folder: Path, name: str) -> list[float]:
    """Every value of a metric that a run logged."""
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def rollouts(folder: Path) -> list[list[dict[str, Any]]]:
    """Rows of every rollout of a run, one row a sample."""
    return [json_lines(file) for file in sorted((folder / "rollouts").glob("*.jsonl"))]


def json_lines(file: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
