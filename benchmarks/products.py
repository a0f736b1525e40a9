"""Speed of the products of a linear layer, its weight's gradient in several layouts included, at SmolLM2's shapes.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/products.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536))  # outputs, inputs


def gigaflops(product: Callable[[], Tensor], operations: int, tries: int = 6) -> float:
    """The best of several tries, after one that compiles the kernel."""
    product()
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return operations / best / 1e9


def products(tokens: int, outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """The products by name; ``y`` is the gradient of the outputs."""
    x, w, y = (torch.randn(shape, dtype=dtype) for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
    xt, yt = x.t().contiguous(), y.t().contiguous()
    return {
        "x W'": lambda: linear(x, w),
        "y W": lambda: y @ w,
        "y' x": lambda: y.t() @ x,
        "(x' y)'": lambda: (x.t() @ y).t(),
        "y' x, y' laid out": lambda: yt @ x,
        "and laid out in it": lambda: y.t().contiguous() @ x,
        "both laid out": lambda: linear(yt, xt),
    }


def main() -> None:
    """Print GFLOP/s, a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    options = parser.parse_args()
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    print(f"{'':18}" + "".join(f"{name:>20}" for name in products(1, 1, 1, dtype)))
    for tokens in options.tokens:
        for outputs, inputs in SHAPES:
            rates = [
                gigaflops(product, 2 * tokens * outputs * inputs)
                for product in products(tokens, outputs, inputs, dtype).values()
            ]
            print(f"{tokens:5} {outputs:5} {inputs:5} " + "".join(f"{rate:20.0f}" for rate in rates))


if __name__ == "__main__":
    main()
