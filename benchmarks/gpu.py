"""One GPU in at most eight minutes: DPO, SFT and GRPO against TRL, generation against vLLM, and memory.

    .venv/bin/python benchmarks/gpu.py --trl-python .venv-trl/bin/python
    .venv/bin/python benchmarks/gpu.py --miniature          # on a CPU, a model of two layers, without TRL

The model is made on the spot with random weights, and so are the rows: speed does not depend on what they say, and
nothing is downloaded. Workers are those of ``vs_trl.py`` and ``grpo_vs_trl.py``; TRL runs as it is, which on a GPU is
its Triton path. Each part has a share of the time that is left. A side that takes longer is stopped and reported as
such, and what was measured stands in the table and in ``gpu.json`` from the moment it was measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpo_vs_trl
import torch
import vs_trl
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from vs_trl import WARM_UP

#: Shapes of the model: the one that is measured (0.5 billion weights), and one for a CPU.
SIZES = {
    "0.5b": {
        "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
    },
    "miniature": {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip
#: Share of each part in the time that is left when it begins, in this order.
PARTS = {"dpo": 0.3, "sft": 0.3, "grpo": 0.6, "generate": 1.0}
HEADINGS = {"tokens_per_second": "tokens / s", "peak_mib": "peak MiB"}


@dataclass(frozen=True)
class Work:
    """Amounts of a run.

    Attributes:
        pairs: of a DPO step; an SFT step has twice as many rows.
        steps: that are counted.
        longest: tokens of a response.
        prompts: of a GRPO step, and of a round of generation.
        group: responses to each of them.
        response_tokens: of each.
    """

    pairs: int = 16
    steps: int = 4
    longest: int = 768
    prompts: int = 8
    group: int = 8
    response_tokens: int = 256


MINIATURE = Work(pairs=2, steps=1, longest=24, prompts=2, group=2, response_tokens=4)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    vs_trl.common_arguments(parser)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--miniature", action="store_true", help="a tiny model on the CPU, without TRL")
    return parser.parse_args()


def main() -> None:
    """Measure part after part until the time is up."""
    options = arguments()
    options.device = "cpu" if options.miniature else "cuda"
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: pass --miniature to try the script on a CPU")
    options.size, options.amounts = ("miniature", MINIATURE) if options.miniature else ("0.5b", Work())
    options.precision = "fp32" if options.miniature else options.precision[0]
    options.compile, options.statistics = False, ["entropy", "top1"]
    deadline = time.monotonic() + 60 * options.minutes
    prepare(options)
    measured = Measured(options.work / "gpu.json", {"options": vars(options), "device": device_name(options.device)})
    for part in options.parts:
        left = deadline - time.monotonic()
        ends = time.monotonic() + left * PARTS[part] if part != options.parts[-1] else deadline
        for case in CASES[part](options):
            measured.add(part, case.name, timed(case, options, ends))
    print(f"written to {measured.path}")


@dataclass(frozen=True)
class Case:
    """A worker to start, and how its result becomes rates.

    Attributes:
        name: of the side.
        side: of ``worker.py``.
        python: that runs it.
        settings: of the worker.
        rates: makes numbers of its result.
    """

    name: str
    side: str
    python: Path
    settings: dict[str, Any]
    rates: Callable[[dict[str, Any]], dict[str, float]]


class Measured:
    """Lines that are printed and written as they come."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about, self.rows = path, about, list[dict[str, Any]]()
        print(f"{'':24}" + "".join(f"{head:>14}" for head in HEADINGS.values()), flush=True)

    def add(self, part: str, side: str, numbers: dict[str, Any]) -> None:
        """Print and write a line."""
        self.rows.append({"part": part, "side": side, **numbers})
        cells = "".join(f"{numbers[name]:14.0f}" for name in HEADINGS if name in numbers)
        print(f"{part + ', ' + side:24}{cells or '  ' + numbers['problem']}", flush=True)
        self.path.write_text(json.dumps({**self.about, "results": self.rows}, indent=1, default=str))


def timed(case: Case, options: argparse.Namespace, ends: float) -> dict[str, Any]:
    """Rates of a case, or why there are none."""
    left = ends - time.monotonic()
    if left <= 0:
        return {"problem": "not begun: the time of this part is up"}
    try:
        result = vs_trl.run(case.side, case.python, case.settings, options.work, timeout=left)
    except subprocess.TimeoutExpired:
        return {"problem": f"stopped after {left:.0f} s: the time of this part is up"}
    except SystemExit as error:  # a side that fails leaves the others to be measured
        return {"problem": f"failed: {str(error).strip().splitlines()[-1]}", "error": str(error)}
    return case.rates(result)


def prepare(options: argparse.Namespace) -> None:
    """Write the model, its tokenizer and rows of random ids."""
    options.work.mkdir(parents=True, exist_ok=True)
    folder, shape = options.work / "model", SIZES[options.size]
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape, tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {f"w{number}": number for number in range(shape["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")),
        pad_token="w0",
        bos_token="w1",
        eos_token="w2",
    )
    tokenizer.save_pretrained(folder)
    draw, amounts = random.Random(0), options.amounts
    longest = (amounts.longest // 4, amounts.longest, amounts.longest)  # of prompt, chosen and rejected response
    pairs = [
        [ids(draw, shape["vocab_size"], most) for most in longest]
        for _ in range(amounts.pairs * (amounts.steps + WARM_UP))
    ]
    single = [[prompt, response] for prompt, *responses in pairs for response in responses]
    prompts = [prompt for prompt, *_ in pairs][: amounts.prompts * (amounts.steps + WARM_UP)]
    for name, rows in {"pairs": pairs, "supervised": single, "prompts": prompts}.items():
        (options.work / f"{name}.json").write_text(json.dumps(rows))


def ids(draw: random.Random, vocabulary: int, longest: int) -> list[int]:
    """Between a quarter of the longest length and all of it; never a special token."""
    return [draw.randrange(4, vocabulary) for _ in range(draw.randint(longest // 4, longest))]


def trl_cases(options: argparse.Namespace, side: str, settings: dict[str, Any], rates: Any) -> Iterator[Case]:
    """TRL's side, where its environment is."""
    if not options.miniature and options.trl_python.exists():
        yield Case("TRL", side, options.trl_python, settings, rates)


def offline(method: str, reference: str, **peer: bool) -> Callable[[argparse.Namespace], Iterator[Case]]:
    """The cases of a method on given rows.

    Args:
        method: of ``vs_trl.py``.
        reference: its kind.
        **peer: settings of TRL alone.
    """

    def cases(options: argparse.Namespace) -> Iterator[Case]:
        settings = vs_trl.settings_of(options, method, options.precision, reference, options.amounts.pairs)
        settings["device"] = options.device
        rows = json.loads(Path(settings["rows"]).read_text())
        tokens = vs_trl.useful_tokens(rows, method, WARM_UP * settings["rows_a_step"])

        def rates(result: dict[str, Any]) -> dict[str, float]:
            return vs_trl.rates(result, tokens)

        yield Case("ours", "ours", Path(sys.executable), settings, rates)
        yield from trl_cases(options, "trl", settings | peer, rates)

    return cases


def on_policy(options: argparse.Namespace) -> Iterator[Case]:
    """GRPO with a reference model: the whole step."""
    amounts = options.amounts
    options.group, options.response_tokens, options.accumulate = amounts.group, amounts.response_tokens, 1
    settings = grpo_vs_trl.settings_of(options, options.precision, "live", amounts.prompts)
    settings["device"] = options.device
    prompts = json.loads((options.work / "prompts.json").read_text())[WARM_UP * amounts.prompts :]
    useful = sum(map(len, prompts)) / amounts.steps + amounts.prompts * amounts.group * amounts.response_tokens

    def rates(result: dict[str, Any]) -> dict[str, float]:
        numbers = grpo_vs_trl.rates(result, useful)
        return {"tokens_per_second": numbers["step_wall"], **numbers}

    yield Case("ours", "ours_grpo", Path(sys.executable), settings, rates)
    yield from trl_cases(options, "trl_grpo", settings, rates)


def generation(options: argparse.Namespace) -> Iterator[Case]:
    """Each engine that is installed; new tokens a second."""
    amounts = options.amounts
    engines = ["transformers", *(["vllm"] if importlib.util.find_spec("vllm") else [])]
    for engine in engines:
        settings = {
            "rows": str(options.work / "prompts.json"), "model": str(options.work / "model"), "engine": engine,
            "device": options.device, "dtype": None if options.miniature else "bfloat16", "threads": options.threads,
            "steps": amounts.steps + WARM_UP, "group": amounts.group, "response_tokens": amounts.response_tokens,
        }  # fmt: skip
        prompts = len(json.loads((options.work / "prompts.json").read_text()))
        tokens = amounts.steps * prompts * amounts.group * amounts.response_tokens
        yield Case(engine, "ours_generate", Path(sys.executable), settings, lambda got, n=tokens: vs_trl.rates(got, n))


CASES: dict[str, Callable[[argparse.Namespace], Iterator[Case]]] = {
    "dpo": offline("dpo", "live"),
    "sft": offline("sft", "none", padding_free=True),
    "grpo": on_policy,
    "generate": generation,
}


def device_name(device: str) -> str:
    """Name of the device, for the file."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


if __name__ == "__main__":
    main()
