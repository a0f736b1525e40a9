"""Shared-prefix attention against a dense mask over the whole row, in values and in gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lightning.ops.attention import Segments, shared_prefix_attention

LENGTHS = [(5, [7, 3]), (4, [1, 9]), (1, [2, 6])]  # prompt, responses
HEADS, KV_HEADS, D = 4, 2, 8


def layout(groups: list[tuple[int, list[int]]]) -> Segments:
    prompts, responses, at = [], [], 0
    for prompt, lengths in groups:
        prompts.append((at, at + prompt))
        at += prompt
        for length in lengths:
            responses.append((at, at + length, len(prompts) - 1))
            at += length
    return Segments(tuple(prompts), tuple(responses))


def dense_mask(segments: Segments, window: int | None) -> Tensor:
    """Mask of the tokens that each token sees, from the definition, one pair of tokens at a time."""
    tokens = max(end for _, end, _ in segments.responses)
    location: dict[int, tuple[int, int, int]] = {}  # token -> (prompt, response or -1, position)
    for index, (start, end) in enumerate(segments.prompts):
        location |= {t: (index, -1, t - start) for t in range(start, end)}
    for index, (start, end, parent) in enumerate(segments.responses):
        length = segments.prompts[parent][1] - segments.prompts[parent][0]
        location |= {t: (parent, index, length + t - start) for t in range(start, end)}
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for q, (group, response, position) in location.items():
        for k, (other_group, other, earlier) in location.items():
            same_response = group == other_group and other in (-1, response)
            mask[q, k] = same_response and earlier <= position and (window is None or position - earlier < window)
    return mask


def twin(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None) -> Tensor:
    k, v = (x.repeat_interleave(len(q) // len(k), 0) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v).transpose(0, 1)


def inputs(tokens: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(heads, tokens, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


@pytest.mark.parametrize("rows", [3, 256, None])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 4, 8, 50])
def test_equals_the_dense_mask(rows: int | None, softcap: float | None, window: int | None) -> None:
    segments = layout(LENGTHS)
    mask = dense_mask(segments, window)
    leaves = inputs(len(mask))
    expected = twin(*leaves, mask, 0.3, softcap)
    actual = shared_prefix_attention(*leaves, segments, scale=0.3, window=window, softcap=softcap, rows=rows)
    torch.testing.assert_close(actual, expected)
    up = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((up * expected).sum(), leaves)
    got = torch.autograd.grad((up * actual).sum(), leaves)
    for w, g in zip(wanted, got, strict=True):
        torch.testing.assert_close(g, w)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=3)), min_size=1, max_size=3),
    st.one_of(st.none(), st.integers(1, 12)),
    st.integers(1, 6),
)
def test_any_layout(groups: list[tuple[int, list[int]]], window: int | None, rows: int) -> None:
    segments = layout(groups)
    mask = dense_mask(segments, window)
    leaves = inputs(len(mask))
    actual = shared_prefix_attention(*leaves, segments, scale=1.0, window=window, rows=rows)
    torch.testing.assert_close(actual, twin(*leaves, mask, 1.0, None))


@pytest.mark.parametrize("rows", [3, None])
@pytest.mark.parametrize("window", [None, 1, 4, 8, 50])
def test_a_block_holds_the_keys_that_its_rows_see_and_no_other(rows: int | None, window: int | None) -> None:
    """It is given the window where that hides a key that one of its rows would otherwise see."""
    segments = layout(LENGTHS)
    without, within = dense_mask(segments, None), dense_mask(segments, window)
    blocks = segments.blocks(window, rows)
    assert rows is not None or len(blocks) == len(segments.prompts) + len(segments.responses)
    for block in blocks:
        seen = within[block.start : block.stop]
        keys = [key for start, end in block.keys for key in range(start, end)]
        assert keys == seen.any(0).nonzero().flatten().tolist()
        hidden = without[block.start : block.stop] & ~seen
        assert (block.window is not None) == bool(hidden[:, keys].any())


def test_keys_that_lie_side_by_side_are_a_view() -> None:
    block, values = layout([(4, [3])]).blocks()[1], torch.arange(7.0)[:, None]
    assert block.keys == ((0, 7),)
    assert block.take(values).data_ptr() == values.data_ptr()


def test_bfloat16_keeps_float32_scores() -> None:
    # Scores of about 60: rounded to bfloat16 they would be off by up to 0.125 and the output by several per cent.
    segments = layout([(20, [30, 17])])
    leaves = [(4 * x).detach().bfloat16().requires_grad_() for x in inputs(67)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    mask = dense_mask(segments, None)
    actual, expected = shared_prefix_attention(*leaves, segments, scale=0.5), twin(*exact, mask, 0.5, None)
    torch.testing.assert_close(actual.double(), expected, atol=0.06, rtol=2**-7)
    actual.float().sum().backward()
    expected.sum().backward()
    for leaf, want in zip(leaves, exact, strict=True):
        assert (leaf.grad.double() - want.grad).norm() < 0.02 * want.grad.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [3, 40])
def test_equal_responses_are_computed_alike(length: int, dtype: torch.dtype) -> None:
    """To the bit, whichever lies behind the prompt: a pair of equal responses is a tie."""
    segments = layout([(9, [length, length])])
    first, second = (slice(start, end) for start, end, _ in segments.responses)
    rows = [x.detach() for x in inputs(segments.responses[-1][1], dtype)]
    for x in rows:
        x[:, second] = x[:, first]
    leaves = [x.requires_grad_() for x in rows]
    output = shared_prefix_attention(*leaves, segments, scale=0.3)
    assert torch.equal(output[first], output[second])
    output.sum().backward()
    for x in leaves:
        assert torch.equal(x.grad[:, first], x.grad[:, second])


def test_matmul_precision_is_left_as_it_was() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    leaves = inputs(8, torch.bfloat16)
    shared_prefix_attention(*leaves, layout([(3, [5])]), scale=1.0).sum().backward()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_segments_of_a_batch() -> None:
    built = Segments.build(
        torch.tensor([[0, 5], [15, 19]]), torch.tensor([[5, 12], [12, 15], [19, 20]]), torch.tensor([0, 0, 1])
    )
    assert built == Segments(((0, 5), (15, 19)), ((5, 12, 0), (12, 15, 0), (19, 20, 1)))
