"""A full training step against TRL 1.16: useful tokens per CPU second, and peak memory, in one interleaved run.

    benchmarks/setup_trl.sh                       # once: TRL's own environment in .venv-trl
    .venv/bin/python benchmarks/vs_trl.py         # DPO, KTO, Bradley-Terry rewards and SFT, bf16 autocast

Both sides get the same token ids in the same order and batches, the same float32 weights, AdamW, clipping, precision
and number of threads; neither checkpoints activations. Useful tokens are the same number for both: each prompt once and
its responses. A worker process runs at a time, ours and its peers in turn; a ratio is the median over the rounds.

TRL stands there as it is, and as "TRL*": with the head that it has on a GPU (``trl_compact_head.py``), which scores
only the tokens that count. Batches of rows in a random order are compared, and batches of rows of about the same length
(``--order grouped``), which TRL pads less. SFT is compared with its padded rows and with its ``padding_free`` ones.

Before anything is believed, per-row log-probs (or rewards) must agree in float32, and the first loss of a policy that
equals its reference must be ln 2 (DPO) or 1/2 (KTO). KTO's mismatched responses are given to both sides; they count as
overhead, not as useful tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import rows as rows_file

HERE = Path(__file__).resolve().parent
WARM_UP = 1  #: steps that are not counted
TOLERANCE = 1e-3  #: of a row's float32 log-prob (a sum over hundreds of tokens) or reward
#: TRL's own settings, by the name of its column.
TRL: dict[str, dict[str, bool]] = {"TRL": {}, "TRL*": {"compact_head": True}}
PADDING_FREE = {f"{name} padding_free": options | {"padding_free": True} for name, options in TRL.items()}
MEASURED = {"tokens_per_cpu_second": ("tokens / CPU s", 1), "tokens_per_second": ("tokens / s", 1)}
MEASURED |= {"peak_mib": ("peak MiB", 0)}


@dataclass(frozen=True)
class Comparison:
    """Peer that a method is compared with.

    Attributes:
        references: kinds of reference to measure.
        first_loss: of an untrained policy, in any precision; None: not known beforehand.
        peers: settings of TRL, by the name of their column.
    """

    references: tuple[str, ...] = ("none",)
    first_loss: float | None = None
    peers: dict[str, dict[str, bool]] = field(default_factory=lambda: TRL)


METHODS = {
    "dpo": Comparison(("live", "cached"), math.log(2)),
    "kto": Comparison(("live", "cached"), 0.5),
    "bradley_terry": Comparison(peers={"TRL": {}}),  # no vocabulary, so no head of tokens
    "sft": Comparison(peers=TRL | PADDING_FREE),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    common_arguments(parser)
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--pairs", type=int, nargs="+", default=[2, 4, 8], help="of a batch; a row of KTO or SFT is half"
    )
    parser.add_argument(
        "--order", nargs="+", default=["shuffled", "grouped"], choices=["shuffled", "grouped"], help="grouped by length"
    )
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--reference", nargs="+", default=["live", "cached"], choices=["live", "cached"])
    parser.add_argument(
        "--statistics", nargs="*", default=["entropy", "top1"], help="what ours computes beside the loss"
    )
    parser.add_argument("--compile", action="store_true", help="compile our layers (TRL's stay as they are)")
    return parser.parse_args()


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that every comparison with TRL has."""
    parser.add_argument("--trl-python", type=Path, default=HERE.parent / ".venv-trl/bin/python")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data", help="folder of real pairs")
    parser.add_argument("--work", type=Path, default=HERE / "out", help="folder for rows, model and results")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", nargs="+", default=["bf16"], choices=["bf16", "fp32"])


def require_trl(python: Path) -> None:
    """Stop where TRL's environment is missing."""
    if not python.exists():
        raise SystemExit(f"no TRL at {python}: run benchmarks/setup_trl.sh, or pass --trl-python")


def run(
    side: str, python: Path, settings: dict[str, Any], folder: Path, timeout: float | None = None
) -> dict[str, Any]:
    """One worker process from start to end; a ``subprocess.TimeoutExpired`` after so many seconds."""
    given, result = folder / f"{side}.settings.json", folder / f"{side}.result.json"
    given.write_text(json.dumps(settings))
    environment = os.environ | {"OMP_NUM_THREADS": str(settings["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONPATH", None)
    if side.startswith("ours"):
        environment["PYTHONPATH"] = str(HERE.parent)
    command = [str(python), str(HERE / "worker.py"), side, str(given), str(result)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(result.read_text())


def score_gap(name: str, ours: dict[str, Any], peer: dict[str, Any]) -> float:
    """Largest difference of a row's float32 log-prob or reward; more than ``TOLERANCE`` is another computation."""
    gap = max(abs(a - b) for a, b in zip(ours["scores"], peer["scores"], strict=True))
    if gap > TOLERANCE:
        raise SystemExit(f"{name}: rows of the first batch differ by {gap:.4f}: not the same computation")
    return gap


def check(method: str, results: dict[str, dict[str, Any]]) -> float:
    """Stop unless all sides compute the same; return the largest difference of a row's log-prob or reward."""
    gap = max(score_gap(f"{method}, {name}", results["ours"], side) for name, side in results.items())
    for name, side in results.items():
        if name.startswith("TRL*"):
            score_gap(f"{method}, {name}", results[name.replace("*", "")], side)
    expected = METHODS[method].first_loss
    losses = {name: side["steps"][0]["loss"] for name, side in results.items()}
    if expected is not None and any(abs(loss - expected) > 2e-3 for loss in losses.values()):
        raise SystemExit(f"{method}: the first loss must be {expected:.4f}, and is {losses}")
    return gap


def useful_tokens(rows: list[list[list[int]]], method: str, counted: int) -> int:
    """Tokens of the counted rows: each prompt once with its responses; of KTO's rows the prompt and its response."""
    parts = 2 if method in ("kto", "sft") else 3
    return sum(len(part) for row in rows[counted:] for part in row[:parts])


def settings_of(options: argparse.Namespace, method: str, precision: str, reference: str, pairs: int) -> dict[str, Any]:
    """Settings of a worker; peers change some of them."""
    return {
        "method": method,
        "rows": str(options.work / f"{rows_file.KIND[method]}.json"),
        "rows_a_step": pairs * rows_file.ROWS_A_PAIR[method],
        "model": str(options.work / "model"),
        "output": str(options.work / "trl"),
        "threads": options.threads,
        "device": "cpu",
        "precision": precision,
        "reference": reference,
        "statistics": [] if method == "bradley_terry" else options.statistics,
        "compile": options.compile,
        "compact_head": False,
        "padding_free": False,
    }


def measure(
    options: argparse.Namespace, method: str, precision: str, reference: str, pairs: int, order: str
) -> dict[str, Any]:
    """All sides in turn, ``rounds`` times."""
    settings = settings_of(options, method, precision, reference, pairs)
    rows = json.loads(Path(settings["rows"]).read_text())
    tokens = useful_tokens(rows, method, WARM_UP * settings["rows_a_step"])
    peers = METHODS[method].peers
    table: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *peers)}
    gap = 0.0
    for _ in range(options.rounds):
        results = {"ours": run("ours", Path(sys.executable), settings, options.work)}
        results |= {name: run("trl", options.trl_python, settings | peers[name], options.work) for name in peers}
        gap = max(gap, check(method, results))
        for side, result in results.items():
            table[side].append(rates(result, tokens))
    case = {"method": method, "precision": precision, "reference": reference, "pairs": pairs, "order": order}
    return {**case, "rounds": table, "ratio": {name: ratios(table, name) for name in peers}, "score_gap": gap}


def rates(result: dict[str, Any], tokens: int) -> dict[str, float]:
    """Useful tokens a second, and peak memory."""
    counted = result["steps"][WARM_UP:]
    return {
        "tokens_per_cpu_second": tokens / sum(step["cpu"] for step in counted),
        "tokens_per_second": tokens / sum(step["wall"] for step in counted),
        "peak_mib": result["peak_mib"],
    }


def ratios(table: dict[str, list[dict[str, float]]], peer: str) -> dict[str, dict[str, float]]:
    """Ours over a peer's, measured in the same round: median, smallest and largest over the rounds."""
    by_name = {
        name: [ours[name] / other[name] for ours, other in zip(table["ours"], table[peer], strict=True)]
        for name in table["ours"][0]
    }
    return {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name, values in by_name.items()
    }


def report(results: list[dict[str, Any]], label: Any, measured: dict[str, tuple[str, int]]) -> None:
    """Print a line for each case and peer.

    Args:
        results: from ``measure``.
        label: the words of a case.
        measured: heading and digits of each rate.
    """
    print(f"{'':56}" + "".join(f"{head:>38}" for head, _ in measured.values()))
    print(f"{'':56}" + f"{'ours':>9}{'peer':>9}{'ratio':>8}{'spread':>12}" * len(measured))
    for entry in results:
        for peer, ratio in entry["ratio"].items():
            cells = []
            for name, (_, digits) in measured.items():
                sides = [statistics.median(r[name] for r in entry["rounds"][side]) for side in ("ours", peer)]
                spread = f"{ratio[name]['least']:.2f}-{ratio[name]['most']:.2f}"
                cells += [f"{value:9.{digits}f}" for value in sides] + [f"{ratio[name]['median']:8.2f}{spread:>12}"]
            print(f"{label(entry) + ', ' + peer:56}" + "".join(cells))


def main() -> None:
    """Measure every combination asked for and write ``vs_trl.json``."""
    options = arguments()
    require_trl(options.trl_python)
    results = []
    for pairs, order in product(options.pairs, options.order):
        grouped = pairs if order == "grouped" else 0
        origin = rows_file.write(options.work, options.data, pairs * (options.steps + WARM_UP), grouped=grouped)
        print(f"{pairs} pairs a batch from {origin}, {order}, {options.threads} threads, {options.rounds} rounds")
        sys.stdout.flush()
        results += [
            measure(options, method, precision, reference, pairs, order)
            for method in options.method
            for precision in options.precision
            for reference in METHODS[method].references
            if reference in (*options.reference, "none")
        ]
    path = options.work / "vs_trl.json"
    path.write_text(json.dumps({"options": vars(options), "results": results}, indent=2, default=str))
    words = ("method", "precision", "reference", "pairs", "order")
    report(results, lambda entry: " ".join(str(entry[word]) for word in words), MEASURED)
    print(f"rows' scores differ by at most {max(r['score_gap'] for r in results):.1e}; written to {path}")


if __name__ == "__main__":
    main()
