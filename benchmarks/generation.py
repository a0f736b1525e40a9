"""Generation against transformers' ``generate`` and vLLM: new tokens per CPU second, in one interleaved run.

    .venv/bin/python benchmarks/generation.py --vllm-python .venv-vllm/bin/python
    .venv/bin/python benchmarks/generation.py --varied --precision bf16 --shapes 64x1

Every side samples at temperature 1 from SmolLM2-135M-Instruct, given the same prompts of one length as token ids; all
responses have the same length. Ours and vLLM give the log-prob of each token, ``generate`` gives none. A worker process
runs at a time; a ratio is of one round, and the spread is over the rounds. ``--varied`` lets responses end where they
end, and compares ours with itself without refilled rows, on batches of an eighth of the responses.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import rows as rows_file
from vs_trl import WARM_UP, common_arguments, rates, ratios, report, run

MEASURED = {"tokens_per_cpu_second": ("tokens / CPU s", 1), "tokens_per_second": ("tokens / s", 1)}
MEASURED |= {"peak_mib": ("peak MiB", 0)}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    common_arguments(parser)
    parser.set_defaults(threads=1, precision=["fp32", "bf16"])
    parser.add_argument("--vllm-python", type=Path, help="of an environment with vLLM; without it vLLM is left out")
    parser.add_argument("--shapes", nargs="+", default=["64x1", "8x8"], help="prompts x responses to each")
    parser.add_argument("--prompt-tokens", type=int, default=80, help="of every prompt")
    parser.add_argument("--response-tokens", type=int, default=64, help="of every response; with --varied at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--varied", action="store_true", help="measure what refilling rows gains")
    return parser.parse_args()


def prompts_of(options: argparse.Namespace, count: int) -> Path:
    """Write so many prompts of one length: the ends of texts that are long enough."""
    path = options.work / "generation_prompts.json"
    rows_file.write(options.work, options.data, 200)
    texts = [[*prompt, *chosen] for prompt, chosen, _ in json.loads((options.work / "pairs.json").read_text())]
    long = [text[: options.prompt_tokens] for text in texts if len(text) >= options.prompt_tokens]
    if len(long) < count:
        raise SystemExit(f"{len(long)} texts have {options.prompt_tokens} tokens, and {count} prompts are asked for")
    path.write_text(json.dumps(long[:count]))
    return path


def sides(options: argparse.Namespace) -> dict[str, tuple[str, Path, dict[str, Any]]]:
    """Worker, interpreter and settings of each side; the first one is ours."""
    here = Path(sys.executable)
    if options.varied:
        ended = {"ignore_eos": False}
        return {
            "ours": ("ours_generate", here, ended),
            "without refill": ("ours_generate", here, ended | {"refill": False}),
        }
    peers = {"ours": ("ours_generate", here, {}), "generate": ("hf_generate", here, {})}
    return peers | ({"vLLM": ("vllm_generate", options.vllm_python, {})} if options.vllm_python else {})


def measure(options: argparse.Namespace, precision: str, shape: str) -> dict[str, Any]:
    """All sides in turn, ``rounds`` times."""
    prompts, group = map(int, shape.split("x"))
    settings = {
        "rows": str(prompts_of(options, prompts)), "model": str(options.work / "model"), "engine": "transformers",
        "device": "cpu", "dtype": "bfloat16" if precision == "bf16" else None, "threads": options.threads,
        "steps": 1 + WARM_UP, "warm_up_tokens": 4, "group": group, "response_tokens": options.response_tokens,
        "batch_size": max(1, prompts * group // 8) if options.varied else prompts * group,
    }  # fmt: skip
    compared = sides(options)
    table: dict[str, list[dict[str, float]]] = {name: [] for name in compared}
    drawn: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, (side, python, extra) in compared.items():
            result = run(side, python, settings | extra, options.work)
            drawn[name] = result["scores"][WARM_UP:]
            table[name].append(rates(result, int(sum(drawn[name]))))
    if not options.varied and len(set(map(tuple, drawn.values()))) > 1:  # bf16 rounds differently by batch
        raise SystemExit(f"the sides drew different numbers of tokens: {drawn}")
    peers = [name for name in compared if name != "ours"]
    case = {"precision": precision, "shape": shape, "new_tokens": drawn["ours"]}
    return {**case, "rounds": table, "ratio": {name: ratios(table, name) for name in peers}}


def main() -> None:
    """Measure every combination and write ``generation.json``, or ``generation_varied.json``."""
    options = arguments()
    path = options.work / ("generation_varied.json" if options.varied else "generation.json")
    results = []
    for precision in options.precision:
        for shape in options.shapes:
            results.append(measure(options, precision, shape))
            path.write_text(json.dumps({"options": vars(options), "results": results}, indent=1, default=str))
    report(results, lambda entry: f"{entry['precision']} {entry['shape']}", MEASURED)
    print(f"{options.rounds} rounds, {options.threads} thread; written to {path}")


if __name__ == "__main__":
    main()
