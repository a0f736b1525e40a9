"""A full DPO training step against TRL 1.16: useful tokens per CPU second, and peak memory, in one interleaved run.

    benchmarks/setup_trl.sh                       # once: TRL's own environment in .venv-trl
    .venv/bin/python benchmarks/dpo_vs_trl.py     # live and cached reference, bf16 autocast

Both sides get the same token ids in the same order and batches, the same float32 weights, AdamW, clipping, precision
and number of threads; neither checkpoints activations. Useful tokens are the same number for both: each prompt once and
both its responses. A worker process runs at a time, ours and TRL's in turn; a ratio is the median over the rounds.

Before anything is believed, per-row log-probs must agree and the first loss must be ln 2 on both sides.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import dpo_rows

HERE = Path(__file__).resolve().parent
WARM_UP = 1  #: steps that are not counted


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--trl-python", type=Path, default=HERE.parent / ".venv-trl/bin/python")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data", help="folder of real pairs")
    parser.add_argument("--work", type=Path, default=HERE / "out", help="folder for rows, model and results")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a batch")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", nargs="+", default=["bf16"], choices=["bf16", "fp32"])
    parser.add_argument("--reference", nargs="+", default=["live", "cached"], choices=["live", "cached"])
    parser.add_argument(
        "--statistics", nargs="*", default=["entropy", "top1"], help="what ours computes beside the loss"
    )
    parser.add_argument("--compile", action="store_true", help="compile our layers (TRL's stay as they are)")
    return parser.parse_args()


def run(side: str, python: Path, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One worker process from start to end."""
    given, result = folder / f"{side}.settings.json", folder / f"{side}.result.json"
    given.write_text(json.dumps(settings))
    environment = os.environ | {"OMP_NUM_THREADS": str(settings["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    if side == "ours":
        environment["PYTHONPATH"] = str(HERE.parent)
    command = [str(python), str(HERE / "dpo_worker.py"), side, str(given), str(result)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(result.read_text())


def check(ours: dict[str, Any], trl: dict[str, Any]) -> float:
    """Stop unless both sides compute the same; return the largest difference of a row's log-prob in nats."""
    gaps = [abs(a - b) for a, b in zip(ours["log_probs"], trl["log_probs"], strict=True)]
    if max(gaps) > 1e-2:
        raise SystemExit(f"log-probs of the first batch differ by {max(gaps):.4f} nats: not the same computation")
    for name, side in (("ours", ours), ("TRL", trl)):
        first = side["steps"][0]["loss"]
        if abs(first - math.log(2)) > 2e-3:
            raise SystemExit(f"first loss of {name} is {first:.4f}, not ln 2")
    return max(gaps)


def useful_tokens(rows: list[list[list[int]]], pairs: int) -> int:
    """Tokens of the counted steps: each prompt once, both responses."""
    return sum(len(part) for row in rows[WARM_UP * pairs :] for part in row)


def measure(options: argparse.Namespace, precision: str, reference: str) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times."""
    work = options.work
    rows = json.loads((work / "rows.json").read_text())
    settings = {
        "rows": str(work / "rows.json"),
        "model": str(work / "model"),
        "output": str(work / "trl"),
        "pairs": options.pairs,
        "threads": options.threads,
        "precision": precision,
        "reference": reference,
        "statistics": options.statistics,
        "compile": options.compile,
    }
    tokens = useful_tokens(rows, options.pairs)
    table: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    gap = 0.0
    for _ in range(options.rounds):
        results = {
            "ours": run("ours", Path(sys.executable), settings, work),
            "trl": run("trl", options.trl_python, settings, work),
        }
        gap = max(gap, check(results["ours"], results["trl"]))
        for side, result in results.items():
            counted = result["steps"][WARM_UP:]
            table[side].append(
                {
                    "tokens_per_cpu_second": tokens / sum(step["cpu"] for step in counted),
                    "tokens_per_second": tokens / sum(step["wall"] for step in counted),
                    "peak_mib": result["peak_mib"],
                }
            )
    ratio = {
        name: statistics.median(o[name] / t[name] for o, t in zip(table["ours"], table["trl"], strict=True))
        for name in table["ours"][0]
    }
    return {"precision": precision, "reference": reference, "rounds": table, "ratio": ratio, "log_prob_gap": gap}


def report(results: list[dict[str, Any]]) -> None:
    """The table."""
    print(f"{'':14}{'tokens / CPU s':>24}{'tokens / s':>24}{'peak MiB':>24}")
    print(f"{'':14}" + f"{'ours':>8}{'TRL':>8}{'ratio':>8}" * 3)
    for entry in results:
        cells = []
        for name, digits in (("tokens_per_cpu_second", 1), ("tokens_per_second", 1), ("peak_mib", 0)):
            sides = [statistics.median(r[name] for r in entry["rounds"][side]) for side in ("ours", "trl")]
            cells += [f"{value:8.{digits}f}" for value in sides] + [f"{entry['ratio'][name]:8.2f}"]
        print(f"{entry['precision'] + ' ' + entry['reference']:14}" + "".join(cells))


def main() -> None:
    """Measure every combination asked for and write ``dpo_vs_trl.json``."""
    options = arguments()
    if not options.trl_python.exists():
        raise SystemExit(f"no TRL at {options.trl_python}: run benchmarks/setup_trl.sh, or pass --trl-python")
    origin = dpo_rows.write(options.work, options.data, options.pairs * (options.steps + WARM_UP))
    print(f"{options.pairs} pairs a batch from {origin}, {options.threads} threads, {options.rounds} rounds")
    results = [measure(options, p, r) for p in options.precision for r in options.reference]
    path = options.work / "dpo_vs_trl.json"
    path.write_text(json.dumps({"options": vars(options), "results": results}, indent=2, default=str))
    report(results)
    print(f"rows' log-probs differ by at most {max(r['log_prob_gap'] for r in results):.1e} nats; written to {path}")


if __name__ == "__main__":
    main()
