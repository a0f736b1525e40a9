"""A full training step against TRL 1.16: useful tokens per CPU second, and peak memory, in one interleaved run.

    benchmarks/setup_trl.sh                       # once: TRL's own environment in .venv-trl
    .venv/bin/python benchmarks/vs_trl.py         # DPO, KTO and Bradley-Terry reward training, bf16 autocast

Both sides get the same token ids in the same order and batches, the same float32 weights, AdamW, clipping, precision
and number of threads; neither checkpoints activations. Useful tokens are the same number for both: each prompt once and
its responses. A worker process runs at a time, ours and TRL's in turn; a ratio is the median over the rounds.

Before anything is believed, per-row log-probs (or rewards) must agree and so must the first loss: ln 2 for DPO, 1/2 for
KTO. KTO's mismatched responses are given to both sides; they count as overhead, not as useful tokens.
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

import rows as rows_file

HERE = Path(__file__).resolve().parent
WARM_UP = 1  #: steps that are not counted
#: Reference, and the loss of the first step: None where the two sides only have to agree.
METHODS: dict[str, tuple[tuple[str, ...], float | None]] = {
    "dpo": (("live", "cached"), math.log(2)),
    "kto": (("live", "cached"), 0.5),
    "bradley_terry": (("none",), None),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--trl-python", type=Path, default=HERE.parent / ".venv-trl/bin/python")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data", help="folder of real pairs")
    parser.add_argument("--work", type=Path, default=HERE / "out", help="folder for rows, model and results")
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a batch; KTO takes each response as a row")
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
    if side.startswith("ours"):
        environment["PYTHONPATH"] = str(HERE.parent)
    command = [str(python), str(HERE / "worker.py"), side, str(given), str(result)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(result.read_text())


def check(method: str, ours: dict[str, Any], trl: dict[str, Any]) -> float:
    """Stop unless both sides compute the same; return the largest difference of a row's log-prob or reward."""
    gap = max(abs(a - b) for a, b in zip(ours["scores"], trl["scores"], strict=True))
    if gap > 1e-2:
        raise SystemExit(f"{method}: rows of the first batch differ by {gap:.4f}: not the same computation")
    losses = {name: side["steps"][0]["loss"] for name, side in (("ours", ours), ("TRL", trl))}
    expected = METHODS[method][1]
    expected = losses["TRL"] if expected is None else expected
    if wrong := {name: loss for name, loss in losses.items() if abs(loss - expected) > 2e-3}:
        raise SystemExit(f"{method}: the first loss must be {expected:.4f}, and is {wrong}")
    return gap


def useful_tokens(rows: list[list[list[int]]], method: str, counted: int) -> int:
    """Tokens of the counted rows: each prompt once with its responses; of KTO's rows the prompt and its response."""
    parts = 2 if method == "kto" else 3
    return sum(len(part) for row in rows[counted:] for part in row[:parts])


def measure(options: argparse.Namespace, method: str, precision: str, reference: str) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times."""
    work = options.work
    rows = json.loads((work / f"{rows_file.KIND[method]}.json").read_text())
    rows_a_step = options.pairs * rows_file.ROWS_A_PAIR[method]
    settings = {
        "method": method,
        "rows": str(work / f"{rows_file.KIND[method]}.json"),
        "rows_a_step": rows_a_step,
        "model": str(work / "model"),
        "output": str(work / "trl"),
        "threads": options.threads,
        "precision": precision,
        "reference": reference,
        "statistics": [] if method == "bradley_terry" else options.statistics,
        "compile": options.compile,
    }
    tokens = useful_tokens(rows, method, WARM_UP * rows_a_step)
    table: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    gap = 0.0
    for _ in range(options.rounds):
        results = {
            "ours": run("ours", Path(sys.executable), settings, work),
            "trl": run("trl", options.trl_python, settings, work),
        }
        gap = max(gap, check(method, results["ours"], results["trl"]))
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
    case = {"method": method, "precision": precision, "reference": reference}
    return {**case, "rounds": table, "ratio": ratio, "score_gap": gap}


def report(results: list[dict[str, Any]]) -> None:
    """The table."""
    print(f"{'':28}{'tokens / CPU s':>24}{'tokens / s':>24}{'peak MiB':>24}")
    print(f"{'':28}" + f"{'ours':>8}{'TRL':>8}{'ratio':>8}" * 3)
    for entry in results:
        cells = []
        for name, digits in (("tokens_per_cpu_second", 1), ("tokens_per_second", 1), ("peak_mib", 0)):
            sides = [statistics.median(r[name] for r in entry["rounds"][side]) for side in ("ours", "trl")]
            cells += [f"{value:8.{digits}f}" for value in sides] + [f"{entry['ratio'][name]:8.2f}"]
        label = " ".join(entry[key] for key in ("method", "precision", "reference"))
        print(f"{label:28}" + "".join(cells))


def main() -> None:
    """Measure every combination asked for and write ``vs_trl.json``."""
    options = arguments()
    if not options.trl_python.exists():
        raise SystemExit(f"no TRL at {options.trl_python}: run benchmarks/setup_trl.sh, or pass --trl-python")
    origin = rows_file.write(options.work, options.data, options.pairs * (options.steps + WARM_UP))
    print(f"{options.pairs} pairs a batch from {origin}, {options.threads} threads, {options.rounds} rounds")
    results = [
        measure(options, method, precision, reference)
        for method in options.method
        for precision in options.precision
        for reference in METHODS[method][0]
        if reference in (*options.reference, "none")
    ]
    path = options.work / "vs_trl.json"
    path.write_text(json.dumps({"options": vars(options), "results": results}, indent=2, default=str))
    report(results)
    print(f"rows' scores differ by at most {max(r['score_gap'] for r in results):.1e}; written to {path}")


if __name__ == "__main__":
    main()
