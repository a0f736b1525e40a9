"""Processor time and memory saved by a pass that ends at the highest layer that is read.

.venv/bin/python benchmarks/layer_states.py                      # SmolLM2-135M's shape, random weights
.venv/bin/python benchmarks/layer_states.py --layers 30 --read 9 11 13 15 17 --repeats 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.hidden_states.layers import LayerActor
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.types import Example, PackedBatch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--read", type=int, nargs="+", default=[9, 11, 13, 15, 17])
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--responses", type=int, default=4, help="of 64 tokens each, behind prompts of 64")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    source = TinyRandom(
        layers=options.layers,
        hidden_size=options.hidden,
        heads=9,
        kv_heads=3,
        intermediate_size=8 * options.hidden // 3,
    )
    actor, batch = LayerActor(source.load()), rows(options.responses)
    ended = options.read
    for name, run in (("forward", forward), ("forward and backward", both)):
        whole = statistics.median(seconds(partial(run, actor, batch, [*ended, options.layers]), options.repeats))
        short = statistics.median(seconds(partial(run, actor, batch, ended), options.repeats))
        saved = f"{1 - short / whole:.0%} saved"
        print(f"{name:<21} {whole:.3f} s to layer {options.layers}, {short:.3f} s to layer {max(ended)}: {saved}")
    kept = sum(state.nbytes for state in forward(actor, batch, ended).states)
    print(f"kept: {kept / 2**20:.2f} MiB of {len(ended)} layers at {len(batch.target)} of {len(batch.ids)} tokens")


def rows(count: int) -> PackedBatch:
    """Prompts with one response each."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 250, (count, 2, 64), generator=draw).tolist()
    return pack([Example(prompt, [response]) for prompt, response in ids])


@torch.no_grad()
def forward(actor: LayerActor, batch: PackedBatch, layers: list[int]) -> Any:
    """States without gradients."""
    return actor(batch, layers=layers)


def both(actor: LayerActor, batch: PackedBatch, layers: list[int]) -> None:
    """States and the gradients of a sum of the first ones."""
    actor.zero_grad()
    actor(batch, layers=layers).states[-1].sum().backward()


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Processor time of each repetition, after one that is not counted."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return seconds


if __name__ == "__main__":
    main()
