"""GRPO against TRL 1.16: the whole step, its training half and peak memory, in one interleaved run.

    benchmarks/setup_trl.sh                          # once: TRL's own environment in .venv-trl
    .venv/bin/python benchmarks/grpo_vs_trl.py       # bf16, without and with a reference model

A step draws eight responses to each prompt with transformers, scores them, and takes one optimiser step on all of them.
Both sides get the same prompts as token ids, the same float32 weights, AdamW, clipping, precision, micro-batches and
number of threads. The end of a sequence is ignored, so both make the same number of tokens: prompts times group size
times response length. The *training half* is the step less the generation: reference log-probs, loss, gradients and the
update. Useful tokens of it: each prompt once with its responses.

Before any number is printed, the log-probs of fixed rows and their loss must agree in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import rows as rows_file
from vs_trl import HERE, WARM_UP, run

#: Weight of the KL term: 0 needs no reference model.
REFERENCE = {"none": 0.0, "live": 0.04}
MEASURED = ("step", "train", "generate")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--trl-python", type=Path, default=HERE.parent / ".venv-trl/bin/python")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data", help="folder of real pairs")
    parser.add_argument("--work", type=Path, default=HERE / "out", help="folder for rows, model and results")
    parser.add_argument("--prompts", type=int, default=4, help="of a step")
    parser.add_argument("--group", type=int, default=8, help="responses a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="longest prompt; longer ones keep their end")
    parser.add_argument("--response-tokens", type=int, default=64, help="of every response")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--steps", type=int, default=2, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", nargs="+", default=["bf16"], choices=["bf16", "fp32"])
    parser.add_argument("--reference", nargs="+", default=["none", "live"], choices=list(REFERENCE))
    return parser.parse_args()


def prompts_of(options: argparse.Namespace) -> list[list[int]]:
    """The prompts of every step, warm-up included."""
    count = options.prompts * (options.steps + WARM_UP)
    rows_file.write(options.work, options.data, count)
    rows = json.loads((options.work / "pairs.json").read_text())
    return [prompt[-options.prompt_tokens :] for prompt, *_ in rows[:count]]


def settings_of(options: argparse.Namespace, precision: str, reference: str) -> dict[str, Any]:
    """What a worker is told."""
    return {
        "rows": str(options.work / "prompts.json"),
        "prompts": options.prompts,
        "group": options.group,
        "response_tokens": options.response_tokens,
        "accumulate": options.accumulate,
        "model": str(options.work / "model"),
        "output": str(options.work / "trl"),
        "threads": options.threads,
        "precision": precision,
        "kl": REFERENCE[reference],
    }


def check(ours: dict[str, Any], trl: dict[str, Any]) -> float:
    """Stop unless both sides compute the same on fixed rows; return the largest difference of a log-prob."""
    *log_probs, loss = ours["scores"]
    *theirs, their_loss = trl["scores"]
    gap = max(abs(a - b) for a, b in zip(log_probs, theirs, strict=True))
    if gap > 1e-3:
        raise SystemExit(f"log-probs of the fixed rows differ by {gap:.4f}: not the same computation")
    if abs(loss - their_loss) > 1e-4 * abs(their_loss):
        raise SystemExit(f"the loss of the fixed rows is {loss:.6f} here and {their_loss:.6f} in TRL")
    return gap


def rates(result: dict[str, Any], useful: float) -> dict[str, float]:
    """Useful tokens a second of the whole step, its training half and its generation; and peak memory."""
    counted = result["steps"][WARM_UP:]
    found = {"peak_mib": result["peak_mib"]}
    for clock in ("cpu", "wall"):
        generate = sum(step[f"generate_{clock}"] for step in counted)
        whole = sum(step[clock] for step in counted)
        seconds = {"step": whole, "train": whole - generate, "generate": generate}
        found |= {f"{part}_{clock}": useful * len(counted) / seconds[part] for part in MEASURED}
    return found


def measure(options: argparse.Namespace, prompts: list[list[int]], precision: str, reference: str) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times."""
    settings = settings_of(options, precision, reference)
    counted = prompts[WARM_UP * options.prompts :]
    useful = (sum(map(len, counted)) / options.steps) + options.prompts * options.group * options.response_tokens
    rounds: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    gap = 0.0
    for _ in range(options.rounds):
        ours = run("ours_grpo", Path(sys.executable), settings, options.work)
        trl = run("trl_grpo", options.trl_python, settings, options.work)
        gap = max(gap, check(ours, trl))
        rounds["ours"].append(rates(ours, useful))
        rounds["trl"].append(rates(trl, useful))
    ratio = {
        name: statistics.median(o[name] / t[name] for o, t in zip(rounds["ours"], rounds["trl"], strict=True))
        for name in rounds["ours"][0]
    }
    return {"precision": precision, "reference": reference, "rounds": rounds, "ratio": ratio, "log_prob_gap": gap}


def report(results: list[dict[str, Any]]) -> None:
    """The table."""
    columns = [f"{part}_cpu" for part in MEASURED] + ["peak_mib"]
    heads = ["whole step, tokens / CPU s", "training half", "generation", "peak MiB"]
    print(f"{'':22}" + "".join(f"{head:>28}" for head in heads))
    print(f"{'':22}" + f"{'ours':>12}{'TRL':>8}{'ratio':>8}" * len(columns))
    for entry in results:
        cells = []
        for name in columns:
            ours, trl = (statistics.median(r[name] for r in entry["rounds"][side]) for side in ("ours", "trl"))
            cells.append(f"{ours:12.1f}{trl:8.1f}{entry['ratio'][name]:8.2f}")
        print(f"grpo {entry['precision']} {entry['reference']:12}" + "".join(cells))


def main() -> None:
    """Measure every combination asked for and write ``grpo_vs_trl.json``."""
    options = arguments()
    if not options.trl_python.exists():
        raise SystemExit(f"no TRL at {options.trl_python}: run benchmarks/setup_trl.sh, or pass --trl-python")
    prompts = prompts_of(options)
    (options.work / "prompts.json").write_text(json.dumps(prompts))
    longest, mean = max(map(len, prompts)), sum(map(len, prompts)) / len(prompts)
    print(
        f"{options.prompts} prompts a step of {mean:.0f} tokens in the mean (longest {longest}), {options.group} "
        f"responses of {options.response_tokens} tokens each, {options.accumulate} micro-batches, "
        f"{options.threads} threads"
    )
    results = [
        measure(options, prompts, precision, reference)
        for precision in options.precision
        for reference in options.reference
    ]
    path = options.work / "grpo_vs_trl.json"
    path.write_text(json.dumps({"options": vars(options), "results": results}, indent=2, default=str))
    report(results)
    print(f"log-probs differ by at most {max(r['log_prob_gap'] for r in results):.1e}; written to {path}")


if __name__ == "__main__":
    main()
