"""The highest logits, block by block, against a plain twin that holds every logit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.ops.log_probs import LogitTransform, log_probs
from rlhf_lightning.ops.top_k import TopLogits, logits_top, module_top_logits, top_logits

N, D, V = 23, 12, 1200  # blocks are at least 256 wide: five of them

TRANSFORMS = {
    "plain": LogitTransform(),
    "softcap": LogitTransform(softcap=3.0),
    "all": LogitTransform(scale=1.5, softcap=4.0, temperature=1.3),
}


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype)
    weight = torch.randn(V, D, generator=generator, dtype=dtype)
    bias = torch.randn(V, generator=generator, dtype=dtype)
    target = torch.randint(0, V, (N,), generator=generator)
    target[:3] = (hidden @ weight.T + bias)[:3].argmax(-1)  # a few tokens that are the most likely one
    target[3], target[4] = 0, V - 1  # first and last column of the vocabulary
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), target


def twin(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, width: int, transform: LogitTransform
) -> TopLogits:
    """The definition, with the whole matrix, a sort, and autograd's own gradients."""
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    logits = logits / transform.temperature
    ordered, token = logits.sort(dim=-1, descending=True)
    return TopLogits(ordered[:, :width], token[:, :width], logits[torch.arange(len(target)), target])


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("width", [1, 6, 300])  # 300 is more than a block holds
@pytest.mark.parametrize("block_bytes", [1, 1 << 30])  # the smallest blocks, and one block
def test_values_and_gradients_equal_the_twin(name: str, with_bias: bool, width: int, block_bytes: int) -> None:
    hidden, weight, bias, target = inputs()
    used, leaves = (bias, [hidden, weight, bias]) if with_bias else (None, [hidden, weight])
    expected = twin(hidden, weight, target, used, width, TRANSFORMS[name])
    actual = top_logits(hidden, weight, target, used, width=width, transform=TRANSFORMS[name], block_bytes=block_bytes)
    for field in ("logit", "token", "target_logit"):
        torch.testing.assert_close(getattr(actual, field), getattr(expected, field))
    torch.manual_seed(1)
    up, up_target = torch.randn(N, width, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    for loss in (
        lambda x: (up * x.logit).sum(),
        lambda x: (up_target * x.target_logit).sum(),
        lambda x: (up * x.logit).sum() + (up_target * x.target_logit).sum(),
    ):
        wanted = torch.autograd.grad(loss(expected), leaves, retain_graph=True)
        got = torch.autograd.grad(loss(actual), leaves, retain_graph=True)
        for w, g in zip(wanted, got, strict=True):
            torch.testing.assert_close(g, w)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (9, 4), (9,))
    )
    target = torch.tensor([0, 8, 4])

    def picked(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        top = top_logits(*leaves[:2], target, leaves[2], width=3, transform=TRANSFORMS["all"])
        return top.logit, top.target_logit

    assert torch.autograd.gradcheck(picked, (hidden, weight, bias))


def test_differences_are_those_of_log_probs() -> None:
    hidden, weight, bias, target = inputs()
    top = top_logits(hidden, weight, target, bias, width=4, transform=TRANSFORMS["all"])
    target_log_prob = log_probs(hidden, weight, target, bias, transform=TRANSFORMS["all"]).log_prob
    for column in range(4):
        other = log_probs(hidden, weight, top.token[:, column], bias, transform=TRANSFORMS["all"]).log_prob
        torch.testing.assert_close(target_log_prob + top.logit[:, column] - top.target_logit, other)


def test_a_smaller_vocabulary_is_taken_whole() -> None:
    hidden, weight, _, _ = inputs()
    top = top_logits(hidden, weight[:3], torch.zeros(N, dtype=torch.long), width=5)
    assert top.token.sort(-1).values.tolist() == [[0, 1, 2]] * N
    assert logits_top(hidden @ weight[:3].T, torch.zeros(N, dtype=torch.long), width=5).token.shape == (N, 3)


def test_gradients_are_skipped_where_not_required() -> None:
    hidden, weight, bias, target = inputs()
    top = top_logits(hidden, weight.detach(), target, bias.detach(), width=2)
    assert not top.token.requires_grad
    top.logit.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert bias.grad is None
    top_logits(hidden.detach(), weight, target, width=2).target_logit.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_gives_float32_logits(autocast: bool) -> None:
    hidden, weight, bias, target = (x.detach() for x in inputs(dtype=torch.float32))
    dtype = torch.float32 if autocast else torch.bfloat16
    leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        top = top_logits(*leaves[:2], target, leaves[2], width=4)
    assert top.logit.dtype == top.target_logit.dtype == torch.float32
    rounded = [x.bfloat16().float() for x in (hidden, weight, bias)]
    expected = twin(rounded[0], rounded[1], target, rounded[2], 4, LogitTransform())
    torch.testing.assert_close(top.logit, expected.logit, atol=0.1, rtol=0)  # a logit of 10 is off by 2 ** -6
    (top.logit.sum() - top.target_logit.sum()).backward()
    assert all(x.grad is not None and x.grad.dtype == dtype for x in leaves)
    exact = [x.detach().float().requires_grad_() for x in leaves]
    logits = exact[0] @ exact[1].T + exact[2]
    (logits.gather(1, top.token).sum() - logits.gather(1, target[:, None]).sum()).backward()
    for leaf, want in zip(leaves, exact, strict=True):
        assert (leaf.grad.float() - want.grad).norm() < 0.02 * want.grad.norm()


def test_gradient_of_a_frequent_token_in_bfloat16() -> None:
    """4096 times the same target: a bfloat16 sum of equal terms stops at 256 of them."""
    hidden, weight, bias = torch.ones(4096, 2).bfloat16(), torch.zeros(5, 2).bfloat16(), torch.zeros(5).bfloat16()
    leaves = [weight.requires_grad_(), bias.requires_grad_()]
    top = top_logits(hidden, weight, torch.full((4096,), 3), bias, width=1)
    grads = torch.autograd.grad(top.target_logit.sum(), leaves)
    assert grads[0][3].tolist() == [4096.0, 4096.0]
    assert grads[1][3].item() == 4096.0


@pytest.mark.parametrize("value", [-torch.inf, -1e9])
@pytest.mark.parametrize("block_bytes", [1, 1 << 30])
def test_masked_tokens(value: float, block_bytes: int) -> None:
    """A whole block and the first token of the next; gradients reach what is picked and are finite."""
    hidden, weight, bias, target = inputs(torch.float32)
    with torch.no_grad():
        bias[:257] = value
        target[:5] = torch.tensor([0, 300, 256, 257, 1000])
    leaves = [hidden, weight, bias]
    top = top_logits(hidden, weight, target, bias, width=6, block_bytes=block_bytes)
    expected = twin(hidden.double(), weight.double(), target, bias.double(), 6, LogitTransform())
    assert torch.equal(top.token, expected.token)
    torch.testing.assert_close(top.logit.double(), expected.logit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(top.target_logit.double(), expected.target_logit, atol=1e-5, rtol=1e-5)
    for x, y in zip(
        torch.autograd.grad((top.logit.sum() - top.target_logit[3:].sum()), leaves),
        torch.autograd.grad((expected.logit.sum() - expected.target_logit[3:].sum()), leaves),
        strict=True,
    ):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_no_tokens() -> None:
    hidden, weight, _, target = inputs()
    top = top_logits(hidden[:0], weight, target[:0], width=3)
    (top.logit.sum() + top.target_logit.sum()).backward()
    assert top.logit.shape == (0, 3)
    assert not weight.grad.any()


def test_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward no wider than a block, backward no multiplication with the vocabulary at all."""
    sizes: list[int] = []
    linear = nn.functional.linear

    def spy(*args: Tensor) -> Tensor:
        sizes.append(linear(*args).numel())
        return linear(*args)

    monkeypatch.setattr(nn.functional, "linear", spy)
    hidden, weight, _, target = inputs()
    top = top_logits(hidden, weight, target, width=5, block_bytes=4 * N * 512)
    assert max(sizes) == N * 512 < N * V
    sizes.clear()
    gathered: list[int] = []
    index_add = Tensor.index_add_
    monkeypatch.setattr(
        Tensor, "index_add_", lambda x, dim, i, y: gathered.append(y.numel()) or index_add(x, dim, i, y)
    )
    top.logit.sum().backward()
    assert sizes == []
    assert max(gathered) == N * D  # one picked row a token at a time


@pytest.mark.parametrize("rows", [7, 100])
def test_module_head_equals_the_twin(rows: int) -> None:
    hidden, weight, bias, target = inputs()
    head = nn.Linear(D, V, dtype=torch.float64)
    head.weight.data, head.bias.data = weight.detach().clone(), bias.detach().clone()
    expected = twin(hidden, weight, target, bias, 4, TRANSFORMS["all"])
    actual = module_top_logits(head, hidden, target, width=4, transform=TRANSFORMS["all"], rows=rows)
    for field in ("logit", "token", "target_logit"):
        torch.testing.assert_close(getattr(actual, field), getattr(expected, field))
    (expected.logit.sum() - 2 * expected.target_logit.sum()).backward()
    wanted, hidden.grad = hidden.grad, None
    (actual.logit.sum() - 2 * actual.target_logit.sum()).backward()
    torch.testing.assert_close(hidden.grad, wanted)
    torch.testing.assert_close(head.weight.grad, weight.grad)
    with torch.no_grad():
        assert module_top_logits(head, hidden, target, width=4, rows=rows).logit.shape == (N, 4)


def test_no_width() -> None:
    hidden, weight, _, target = inputs()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        top_logits(hidden, weight, target, width=0)
    with pytest.raises(ValueError, match="at least 1"):
        logits_top(hidden @ weight.T, target, width=0)
    with pytest.raises(ValueError, match="at least 1"):
        module_top_logits(nn.Identity(), hidden, target, width=0)
