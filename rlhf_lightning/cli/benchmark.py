"""RewardBench's table: accuracy by subset and section, and the score."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rlhf_lightning.cli.console import say
from rlhf_lightning.data import RewardBench
from rlhf_lightning.rewards.rewardbench import SECTIONS, SUBSETS, BenchmarkScore, rewardbench_score

#: In the folder of the evaluation.
FILE = "rewardbench.json"


def benchmark(
    source: RewardBench, rows: Sequence[str], chosen: Sequence[float], rejected: Sequence[float], folder: Path
) -> dict[str, float]:
    """Score rewards of a benchmark's pairs; prints the table and writes ``rewardbench.json``.

    Args:
        source: where the rows came from, which knows their subsets.
        rows: id of each pair.
        chosen: reward of each pair's chosen response.
        rejected: of the other one.
        folder: of the file.

    Returns:
        Metrics: ``val/rewardbench/score``, ``val/rewardbench/<section>`` and ``val/rewardbench/left_out``, the rows
        that were not scored: too long, or of no use.
    """
    subsets = source.subsets()
    score = rewardbench_score([subsets[row] for row in rows], chosen, rejected, ties=source.ties)
    subsets_with_rows = set(rows)
    left_out = Counter(subset for row, subset in subsets.items() if row not in subsets_with_rows)
    for line in table(score, left_out):
        say(line)
    if score.tied and source.ties == "half":
        say(f"{score.tied} pairs of equal rewards count half; the published rule is data.validation.ties=wrong")
    record = asdict(score) | {"left_out": dict(left_out), "ties": source.ties, "complete": score.complete}
    (folder / FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sections = {name.lower().replace(" ", "_"): value for name, value in score.sections.items()}
    metrics = {"score": score.score, **sections, "left_out": float(left_out.total())}
    return {f"val/rewardbench/{name}": value for name, value in metrics.items()}


def table(score: BenchmarkScore, left_out: Mapping[str, int]) -> Iterator[str]:
    """The lines of the table: sections with their subsets, subsets of no section, the score."""
    yield f"{'RewardBench':<28}{'accuracy':>9}{'pairs':>7}{'left out':>10}"
    foreign = sorted(set(score.subsets) - set(SUBSETS))
    for section, names in (*SECTIONS.items(), ("in no section", foreign)):
        present = [name for name in names if name in score.subsets]
        if not present:
            continue
        average = score.sections.get(section)
        yield f"{section:<28}" + (f"{average:>9.3f}" if average is not None else "")
        for name in present:
            yield f"  {name:<26}{score.subsets[name]:>9.3f}{score.counts[name]:>7}{left_out.get(name, 0):>10}"
    yield f"{'score':<28}{score.score:>9.3f}{sum(score.counts.values()):>7}{sum(left_out.values()):>10}"
    if not score.complete or left_out:
        missing = len(set(SUBSETS) - set(score.subsets))
        yield f"not comparable with published scores: {missing} subsets and {sum(left_out.values())} rows are missing"
