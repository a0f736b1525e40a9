"""Where a DPO training step's time goes, and how far it is from the machine's matrix-multiply peak.

    .venv/bin/python benchmarks/profile_step.py --pairs 8 --precision bf16

One step (policy, live reference, backward pass, AdamW) on the rows of ``vs_trl.py`` under torch's profiler. Every
operation's own time is booked on the part of the step that it belongs to. The useful floating-point operations of the
step over its time, divided by what the best of three matrix products reaches just before it, is the share of the peak.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import rows as rows_file
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses import dpo
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.modes import compile_layers
from rlhf_lightning.types import Example, PreferenceBatch

HERE = Path(__file__).resolve().parent
#: Name of an operation, or of one above it -> the part of the step.
PARTS = {
    "_SharedPrefixAttention": "attention",
    "_BlockwiseHead": "head (log-probs)",
    "Optimizer": "optimiser",
    "EmbeddingBackward": "embedding",
    "aten::mm": "linear layers",
    "aten::addmm": "linear layers",
    "aten::_to_copy": "casts",
    "aten::copy_": "casts",
}


def part_of(event: torch.autograd.profiler_util.FunctionEvent) -> str:
    """The part of the step that an operation's own time belongs to: the outermost match wins."""
    part_of_step = None
    while event is not None:
        part_of_step = next((part for name, part in PARTS.items() if name in event.name), part_of_step)
        event = event.cpu_parent
    return part_of_step or "elementwise and overhead"


def peak(dtype: torch.dtype) -> float:
    """The best of three products, in FLOP/s: two shapes of the model's layers, and a large square one."""
    best = 0.0
    for m, k, n in ((2048, 576, 1536), (2048, 1536, 576), (2048, 2048, 2048)):
        a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
        for _ in range(10):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best


def useful_flop(actor: Actor, batch: PreferenceBatch) -> float:
    """Operations of the algorithm without recomputation: products with weights and attention, both directions."""
    config = actor.base.config
    head = actor.base.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for p in actor.base.get_decoder().layers.parameters() if p.ndim == 2)
    prompt = (batch.prompt_span[:, 1] - batch.prompt_span[:, 0]).double()
    response = (batch.response_span[:, 1] - batch.response_span[:, 0]).double()
    pairs = (prompt**2 / 2).sum() + (response * prompt[batch.parent] + response**2 / 2).sum()
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    attention = float(pairs) * 4 * width * config.num_hidden_layers
    forward = 2 * layers * len(batch.ids) + 2 * head * len(batch.target) + attention
    return 4 * forward  # the policy's forward pass, twice that backward, the reference's forward pass


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--work", type=Path, default=HERE / "out")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--operations", type=int, default=0, help="also print the N most expensive operations")
    return parser.parse_args()


def make_step(options: argparse.Namespace) -> tuple[Callable[[], None], Actor, PreferenceBatch]:
    """One training step, ready to be called again and again on the same batch."""
    rows_file.write(options.work, options.data, options.pairs)
    rows = json.loads((options.work / "pairs.json").read_text())[: options.pairs]
    batch = pack([Example(prompt, [chosen, rejected]) for prompt, chosen, rejected in rows])
    policy = Actor(AutoModelForCausalLM.from_pretrained(options.work / "model", dtype=torch.float32)).train()
    reference = copy.deepcopy(policy).requires_grad_(False).eval()
    if options.compile:
        compile_layers(policy)
        compile_layers(reference)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            log_probs = policy(batch)
            with torch.no_grad():
                fixed = reference(batch)
        dpo(batch.pair(log_probs), batch.pair(fixed)).loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, policy, batch


def main() -> None:
    """Profile, and print the table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    step, policy, batch = make_step(options)
    step()
    best = peak(torch.bfloat16 if options.precision == "bf16" else torch.float32)
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    spent: Counter[str] = Counter()
    for event in recorded.events():
        spent[part_of(event)] += event.self_cpu_time_total
    total = sum(spent.values())
    print(f"{len(batch.ids)} tokens, {len(batch.target)} scored; {options.precision}, {options.threads} threads")
    for part, microseconds in spent.most_common():
        print(f"  {part:28}{100 * microseconds / total:6.1f} %")
    reached = useful_flop(policy, batch) / wall
    print(f"step: {wall:.2f} s, {cpu:.2f} CPU s, {reached / 1e9:.0f} GFLOP/s of useful work")
    print(
        f"matrix-multiply peak measured here: {best / 1e9:.0f} GFLOP/s; the step reaches {100 * reached / best:.0f} %"
    )
    if options.operations:
        table = recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=options.operations)
        print(table)


if __name__ == "__main__":
    main()
