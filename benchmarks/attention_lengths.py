"""Cost of attention per token by the length of the responses.

    .venv/bin/python benchmarks/attention_lengths.py

Forward and backward pass of shared-prefix attention alone, in the shapes of a SmolLM2-135M layer (9 heads, 3 key heads,
64 numbers a head), on one thread. Prompts have the same length throughout. Take
the smallest of several runs on a machine that does other work.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from rlhf_lightning.ops.attention import Segments, shared_prefix_attention

HEADS, KV_HEADS, SIZE = 9, 3, 64
#: Groups and responses a group.
LAYOUTS = ((8, 2), (2, 16))


def row(groups: int, responses: int, prompt: int, response: int) -> Segments:
    """Groups of equal lengths, end to end."""
    prompts, spans, at = [], [], 0
    for group in range(groups):
        prompts.append((at, at + prompt))
        at += prompt
        for _ in range(responses):
            spans.append((at, at + response, group))
            at += response
    return Segments(tuple(prompts), tuple(spans))


def measured(segments: Segments, dtype: torch.dtype, rounds: int) -> float:
    """CPU seconds of one forward and backward pass: the median after a warm-up."""
    tokens = segments.responses[-1][1]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(tokens, heads, SIZE, generator=generator).to(dtype).transpose(0, 1).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    upstream = torch.randn(tokens, HEADS, SIZE, generator=generator).to(dtype)
    times = []
    for _ in range(rounds + 2):
        start = time.process_time()
        shared_prefix_attention(query, key, value, segments, scale=SIZE**-0.5).backward(upstream)
        times.append(time.process_time() - start)
    return statistics.median(times[2:])


def main() -> None:
    """Print a table for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--response-tokens", type=int, nargs="+", default=[2, 4, 16, 64, 256])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for precision in options.precision:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for groups, responses in LAYOUTS:
            print(f"{precision}, {groups} groups x {responses} responses, prompts of {options.prompt_tokens} tokens")
            for response in options.response_tokens:
                segments = row(groups, responses, options.prompt_tokens, response)
                tokens = segments.responses[-1][1]
                seconds = measured(segments, dtype, options.rounds)
                print(
                    f"  {response:5} tokens a response: {1e3 * seconds:8.2f} ms,"
                    f" {1e6 * seconds / tokens:7.2f} us a token"
                )


if __name__ == "__main__":
    main()
