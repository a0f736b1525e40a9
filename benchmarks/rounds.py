"""Online DPO: where the time of a round goes, and tokens a CPU second against TRL 1.16's experimental trainer.

    benchmarks/setup_trl.sh                                # once: TRL's own environment in .venv-trl
    .venv/bin/python benchmarks/rounds.py                  # float32
    .venv/bin/python benchmarks/rounds.py --no-trl         # where the time goes, alone

A round draws two responses to each prompt of a step with transformers, scores them by a function of the token ids, and
takes one DPO step on the better against the other, with a live reference model. Both sides get the same prompts, the
same float32 weights, AdamW, clipping and number of threads. The end of a sequence is ignored and no pair is left out,
so both draw and train on the same number of tokens, which is checked. TRL's gradient checkpointing, on by default, is
off: it is slower. Before any number is printed, log-probs of fixed rows must agree, and first losses must be ln 2.

TRL stands there as it is, and as "TRL*": with the head on drawn tokens alone, which transformers offers it. All sides
run in turn, ``--rounds`` times; a ratio is the median over these, beside the smallest and the largest one. Beside the
measured ratio stands the one that equal speed of all products with weights would give.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import rows as rows_file
from grpo_vs_trl import MEASURED, rates
from transformers import AutoConfig
from vs_trl import TRL, WARM_UP, common_arguments, ratios, report, require_trl, run, score_gap

from rlhf_lightning.models.sources import SmolLM2

#: Phases of a round, as a run logs them.
PHASES = {"sync": "weights to the engine", "generate": "draw", "reward": "score", "select": "select"}
PHASES |= {"score": "reference", "train": "train"}
LN2 = math.log(2)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    common_arguments(parser)
    parser.add_argument("--prompts", type=int, nargs="+", default=[4, 8], help="of a step")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="longest prompt; longer ones keep their end")
    parser.add_argument("--response-tokens", type=int, default=64, help="of every response")
    parser.add_argument("--steps", type=int, default=2, help="counted steps of a round of measurements")
    parser.add_argument("--rounds", type=int, default=3, help="of measurements")
    parser.add_argument("--trl-accumulate", type=int, default=1, help="micro-batches of TRL's step; ours has one")
    parser.add_argument("--no-trl", action="store_true", help="only where our time goes")
    return parser.parse_args()


def prompts_of(options: argparse.Namespace, per_step: int) -> list[dict[str, Any]]:
    """The prompts of every step, warm-up included, as text and as the ids that the text has."""
    count = per_step * (options.steps + WARM_UP)
    rows_file.write(options.work, options.data, count)
    rows = json.loads((options.work / "pairs.json").read_text())
    tokenizer = SmolLM2().tokenizer()
    texts = [tokenizer.decode(prompt[-options.prompt_tokens :]) for prompt, *_ in rows[:count]]
    return [{"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in texts]


def phases(steps: list[dict[str, float]]) -> dict[str, float]:
    """Mean seconds of each phase over the counted rounds; a round logs the steps on the one before as its own."""
    logged = steps[WARM_UP:]
    return {name: statistics.mean(step.get(f"train/time/{name}", 0.0) for step in logged) for name in PHASES}


def operations(model: Path, lengths: list[int], response: int) -> dict[str, float]:
    """Floating-point operations of a step's products with weights on each side, attention left out.

    Each side computes what it draws once, its reference's pass once, and its training pass three times over: forward,
    and twice as much backward. A reference's pass differs from the policy's in nothing.

    Args:
        model: folder of the model.
        lengths: of the step's prompts.
        response: tokens of each of the two responses.
    """
    config = AutoConfig.from_pretrained(model)
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * heads * config.hidden_size // config.num_attention_heads
    layers = 2 * config.num_hidden_layers * config.hidden_size * (attention + 3 * config.intermediate_size)
    head = 2 * config.vocab_size * config.hidden_size
    drawn = 2 * len(lengths) * response
    rows = 2 * len(lengths) * (max(lengths) + response)  # prompts twice, padded to the longest
    return {
        "ours": 5 * layers * (sum(lengths) + drawn) + 5 * head * drawn,
        "TRL": 5 * layers * rows + head * (drawn + 4 * rows),
        "TRL*": 5 * layers * rows + 5 * head * drawn,
    }


def measure(options: argparse.Namespace, prompts: list[dict[str, Any]], per_step: int) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times."""
    settings = {
        "rows": str(options.work / "prompts.json"),
        "prompts": per_step,
        "response_tokens": options.response_tokens,
        "model": str(options.work / "model"),
        "output": str(options.work / "trl"),
        "threads": options.threads,
        "compact_head": False,
        "accumulate": options.trl_accumulate,
    }
    peers = {} if options.no_trl else TRL
    prompt_tokens = sum(len(prompt["ids"]) for prompt in prompts[WARM_UP * per_step :]) / options.steps
    useful = prompt_tokens + 2 * per_step * options.response_tokens
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *peers)}
    gap, spent = 0.0, []
    for _ in range(options.rounds):
        results = {"ours": run("ours_rounds", Path(sys.executable), settings, options.work)}
        for name, changes in peers.items():
            results[name] = run("trl_rounds", options.trl_python, settings | changes, options.work)
            gap = max(gap, score_gap(f"fixed rows, {name}", results["ours"], results[name], 1e-3))
        for name, result in results.items():
            if abs(result["steps"][0]["loss"] - LN2) > 1e-5:
                raise SystemExit(f"{name}: the first loss is {result['steps'][0]['loss']:.6f}, and not ln 2")
            rounds[name].append(rates(result, useful))
        spent.append(phases(results["ours"]["steps"]))
    mean = {name: statistics.mean(one[name] for one in spent) for name in PHASES}
    ratio = {name: ratios(rounds, name) for name in rounds if name != "ours"}
    lengths = [len(prompt["ids"]) for prompt in prompts]
    steps = [lengths[at : at + per_step] for at in range(WARM_UP * per_step, len(lengths), per_step)]
    counted = [operations(options.work / "model", step, options.response_tokens) for step in steps]
    flop = {name: sum(step[name] for step in counted) for name in counted[0]}
    case = {"prompts": per_step, "operations": flop, "log_prob_gap": gap, "phases": mean}
    return {**case, "rounds": rounds, "ratio": ratio}


def print_phases(result: dict[str, Any]) -> None:
    """A round's seconds by phase, with their shares."""
    whole = sum(result["phases"].values())
    print(f"a round of {result['prompts']} prompts, {whole:.2f} s:")
    for name, label in PHASES.items():
        print(f"  {label:24}{result['phases'][name]:8.3f} s{result['phases'][name] / whole:8.1%}")
    flop = result["operations"]
    listed = ", ".join(f"{name} {flop[name] / flop['ours']:.2f} x" for name in flop if name != "ours")
    print(f"  products with weights: ours {flop['ours'] / 1e9:.0f} GFLOP, {listed}")


def main() -> None:
    """Measure every size asked for and write ``rounds.json``."""
    options = arguments()
    if not options.no_trl:
        require_trl(options.trl_python)
    results = []
    for per_step in options.prompts:
        prompts = prompts_of(options, per_step)
        (options.work / "prompts.json").write_text(json.dumps(prompts))
        lengths = [len(prompt["ids"]) for prompt in prompts]
        print(
            f"{per_step} prompts a step of {statistics.mean(lengths):.0f} tokens in the mean (longest {max(lengths)}), "
            f"2 responses of {options.response_tokens} tokens each, {options.threads} threads",
            flush=True,
        )
        results.append(measure(options, prompts, per_step))
        print_phases(results[-1])
    path = options.work / "rounds.json"
    path.write_text(json.dumps({"options": vars(options), "results": results}, indent=2, default=str))
    if not options.no_trl:
        report(results, lambda entry: f"online DPO fp32 {entry['prompts']}", MEASURED)
        print(f"log-probs differ by at most {max(r['log_prob_gap'] for r in results):.1e}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
