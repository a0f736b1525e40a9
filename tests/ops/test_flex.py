"""Flex attention: how often it is compiled, and what happens past torch's limit.

On a CPU torch has neither the fused kernel nor a backward pass. Tracing, guards and the count of compilations are the
same on each device; what the kernel's own compiler adds to them is not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.attention import Layout
from rlhf_lightning.ops import flex as flex_module
from rlhf_lightning.ops.attention import shared_prefix_attention
from rlhf_lightning.ops.flex import flex
from rlhf_lightning.types import Example, PackedBatch

WINDOWS = (None, 64)


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    flex_module._compiled.cache_clear()
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)  # refuses inputs with gradients on a CPU
    yield
    flex_module._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens at each compilation; the compiled function gives zeros at no cost."""
    tokens: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        (first, *_) = [x for x in inputs if isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()]
        tokens.append(first.shape[2])
        position = next(i for i, x in enumerate(inputs) if x is first)
        return lambda *arguments: (torch.zeros_like(arguments[position]),)

    compile_with = torch.compile
    counting = {"backend": backend}
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_with(function, **options | counting))
    return tokens


def packed(*groups: tuple[int, list[int]]) -> PackedBatch:
    slots = max(len(lengths) for _, lengths in groups)
    filled = [(prompt, [*lengths, *[0] * slots][:slots]) for prompt, lengths in groups]
    return pack([Example([1] * prompt, [[1] * length for length in lengths]) for prompt, lengths in filled])


def run(batch: PackedBatch, heads: tuple[int, int, int], window: int | None, gradients: bool, **options: Any) -> Tensor:
    inputs = [
        torch.zeros(1, len(batch.ids), count, heads[2]).transpose(1, 2).requires_grad_(gradients)
        for count in (heads[0], heads[1], heads[1])
    ]
    with torch.set_grad_enabled(gradients):
        return flex(*inputs, Layout.of(batch).block_mask(window), scale=0.3, **options)


def test_200_batches_of_two_windows_and_two_models_compile_a_few_times(compiled: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)

    def some(low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    models = {(4, 2, 16): {}, (9, 3, 32): {"softcap": 30.0}}
    after = []
    for longest in [200, 20, 20, 300] * 50:
        batch = packed(*((some(1, longest, 1)[0], some(0, longest, 3)) for _ in range(some(1, 4, 1)[0])))
        for heads, options in models.items():
            for window in WINDOWS:
                for gradients in (True, False):
                    run(batch, heads, window, gradients, **options)
        after.append(len(compiled))
    assert min(compiled) <= 128 < max(compiled)  # rows of one block and of more
    assert after[-1] == len(models) * 2 * 2  # for each: with gradients and without, one block and more
    assert after[50] == after[-1]


@pytest.mark.parametrize("blocks", [2, 9])
def test_a_number_of_blocks_that_equals_another_size_costs_one_compilation_at_most(
    blocks: int, compiled: list[int]
) -> None:
    """Torch takes sizes that are equal at the first call for one size: here the blocks and the heads."""
    for tokens in (128 * blocks, 600, 1500, 384):
        run(packed((100, [tokens - 100])), (9, 3, 16), None, False)
    assert len(compiled) <= 2


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_values_and_gradients_are_those_of_the_other_kernel(window: int | None, softcap: float | None) -> None:
    batch = packed((70, [30, 60]), (5, [20, 1]))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, len(batch.ids), 16, generator=generator, requires_grad=True) for heads in (4, 2, 2)]
    layout = Layout.of(batch)
    options = {"scale": 0.3, "softcap": softcap}
    expected = shared_prefix_attention(*(x[0] for x in inputs), layout.segments, window=window, **options)
    actual = flex(*inputs, layout.block_mask(window), **options)[0]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(expected.shape, generator=generator)
    wanted = torch.autograd.grad((upstream * expected).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((upstream * actual).sum(), inputs), wanted, atol=1e-4, rtol=1e-4)


def test_past_the_limit_it_fails_and_keeps_no_full_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    run(packed((10, [20])), (4, 2, 16), None, False)
    with pytest.raises(RuntimeError, match=r"compiled 1 times.*full matrix of scores.*backend=padded"):
        run(packed((100, [200])), (4, 2, 16), None, False)
