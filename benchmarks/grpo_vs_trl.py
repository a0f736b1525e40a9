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
import sys
from pathlib import Path
from typing import Any

import rows as rows_file
from vs_trl import TRL, WARM_UP, common_arguments, ratios, report, require_trl, run

#: Weight of the KL term: 0 needs no reference model.
REFERENCE = {"none": 0.0, "live": 0.04}
PARTS = {"step": "whole step, tokens / CPU s", "train": "training half", "generate": "generation"}
MEASURED = {f"{part}_cpu": (head, 1) for part, head in PARTS.items()} | {"peak_mib": ("peak MiB", 0)}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    common_arguments(parser)
    parser.add_argument("--prompts", type=int, nargs="+", default=[2, 4], help="of a step")
    parser.add_argument("--group", type=int, default=8, help="responses a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="longest prompt; longer ones keep their end")
    parser.add_argument("--response-tokens", type=int, default=64, help="of every response")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--steps", type=int, default=2, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--reference", nargs="+", default=["none", "live"], choices=list(REFERENCE))
    return parser.parse_args()


def prompts_of(options: argparse.Namespace, per_step: int) -> list[list[int]]:
    """The prompts of every step, warm-up included."""
    count = per_step * (options.steps + WARM_UP)
    rows_file.write(options.work, options.data, count)
    rows = json.loads((options.work / "pairs.json").read_text())
    return [prompt[-options.prompt_tokens :] for prompt, *_ in rows[:count]]


def settings_of(options: argparse.Namespace, precision: str, reference: str, per_step: int) -> dict[str, Any]:
    """Settings of a worker."""
    return {
        "rows": str(options.work / "prompts.json"),
        "prompts": per_step,
        "group": options.group,
        "response_tokens": options.response_tokens,
        "accumulate": options.accumulate,
        "model": str(options.work / "model"),
        "output": str(options.work / "trl"),
        "threads": options.threads,
        "device": "cpu",
        "precision": precision,
        "kl": REFERENCE[reference],
        "compact_head": False,
    }


def check(ours: dict[str, Any], trl: dict[str, Any]) -> float:
    """Stop unless both sides compute the same on fixed rows; return the largest difference of a log-prob."""
    *log_probs, loss = ours["scores"]
    *trl_log_probs, trl_loss = trl["scores"]
    gap = max(abs(a - b) for a, b in zip(log_probs, trl_log_probs, strict=True))
    if gap > 1e-3:
        raise SystemExit(f"log-probs of the fixed rows differ by {gap:.4f}: not the same computation")
    if abs(loss - trl_loss) > 1e-4 * abs(trl_loss):
        raise SystemExit(f"the loss of the fixed rows is {loss:.6f} here and {trl_loss:.6f} in TRL")
    return gap


def rates(result: dict[str, Any], useful: float) -> dict[str, float]:
    """Useful tokens a second of the whole step, its training half and its generation; and peak memory."""
    counted = result["steps"][WARM_UP:]
    numbers = {"peak_mib": result["peak_mib"]}
    for clock in ("cpu", "wall"):
        generate = sum(step[f"generate_{clock}"] for step in counted)
        whole = sum(step[clock] for step in counted)
        seconds = {"step": whole, "train": whole - generate, "generate": generate}
        numbers |= {f"{part}_{clock}": useful * len(counted) / seconds[part] for part in PARTS}
    return numbers


def measure(
    options: argparse.Namespace, prompts: list[list[int]], precision: str, reference: str, per_step: int
) -> dict[str, Any]:
    """All sides in turn, ``rounds`` times."""
    settings = settings_of(options, precision, reference, per_step)
    counted = prompts[WARM_UP * per_step :]
    useful = (sum(map(len, counted)) / options.steps) + per_step * options.group * options.response_tokens
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *TRL)}
    gap = 0.0
    for _ in range(options.rounds):
        ours = run("ours_grpo", Path(sys.executable), settings, options.work)
        rounds["ours"].append(rates(ours, useful))
        for name, changes in TRL.items():
            peer = run("trl_grpo", options.trl_python, settings | changes, options.work)
            gap = max(gap, check(ours, peer))
            rounds[name].append(rates(peer, useful))
    case = {"precision": precision, "reference": reference, "prompts": per_step}
    return {**case, "rounds": rounds, "ratio": {name: ratios(rounds, name) for name in TRL}, "log_prob_gap": gap}


def main() -> None:
    """Measure every combination asked for and write ``grpo_vs_trl.json``."""
    options = arguments()
    require_trl(options.trl_python)
    results = []
    for per_step in options.prompts:
        prompts = prompts_of(options, per_step)
        (options.work / "prompts.json").write_text(json.dumps(prompts))
        longest, mean = max(map(len, prompts)), sum(map(len, prompts)) / len(prompts)
        print(
            f"{per_step} prompts a step of {mean:.0f} tokens in the mean (longest {longest}), {options.group} "
            f"responses of {options.response_tokens} tokens each, {options.accumulate} micro-batches, "
            f"{options.threads} threads",
            flush=True,
        )
        results += [
            measure(options, prompts, precision, reference, per_step)
            for precision in options.precision
            for reference in options.reference
        ]
    path = options.work / "grpo_vs_trl.json"
    path.write_text(json.dumps({"options": vars(options), "results": results}, indent=2, default=str))
    report(results, lambda entry: f"grpo {entry['precision']} {entry['reference']} {entry['prompts']}", MEASURED)
    print(f"log-probs differ by at most {max(r['log_prob_gap'] for r in results):.1e}; written to {path}")


if __name__ == "__main__":
    main()
