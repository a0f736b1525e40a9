"""Resident memory over steps whose rows never have the same length twice, and their CPU seconds.

    .venv/bin/python benchmarks/resident.py      # with the caches of kernels that rlhf has
    LRU_CACHE_CAPACITY=1024 ONEDNN_PRIMITIVE_CACHE_CAPACITY=1024 .venv/bin/python benchmarks/resident.py

Two layers of SmolLM2's shape with random weights and a small vocabulary: kernels depend on shapes, not on the number of
layers. A step has two prompts of 8 to 250 tokens with two responses each.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from pathlib import Path

from rlhf_lightning.cli.cpu_defaults import set_cpu_defaults

set_cpu_defaults()  # before torch is imported

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from rlhf_lightning.data.batches.packing import pack  # noqa: E402
from rlhf_lightning.models.actor import Actor  # noqa: E402
from rlhf_lightning.types import Example  # noqa: E402

MARKS = (1, 5, 10, 20, 50, 100, 150, 200, 500, 1000)


def resident() -> float:
    """MiB that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def small_actor() -> Actor:
    """SmolLM2's shape with two layers."""
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(num_hidden_layers=2, vocab_size=4096, tie_word_embeddings=True, **shape)
    return Actor(LlamaForCausalLM(config)).train()


def group(lengths: random.Random, bucket: int) -> Example:
    """A prompt and two responses, each of a random length that ``bucket`` divides."""
    prompt, first, second = (-(-lengths.randint(8, 250) // bucket) * bucket for _ in range(3))
    return Example([5] * prompt, [[7] * first, [9] * second])


def main() -> None:
    """Train, and print the memory as it goes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--bucket", type=int, default=1, help="lengths are multiples of it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    actor, lengths = small_actor(), random.Random(1)
    optimizer = torch.optim.AdamW(actor.parameters(), lr=1e-6, fused=True)
    start = time.process_time()
    for step in range(1, options.steps + 1):
        batch = pack([group(lengths, options.bucket) for _ in range(2)])
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            log_probs = actor(batch)
        (-log_probs.sum().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (*MARKS, options.steps):
            print(
                f"{step:5} steps: {resident():6.0f} MiB resident, {time.process_time() - start:6.1f} CPU s", flush=True
            )


if __name__ == "__main__":
    main()
