"""The blockwise head against a plain twin that holds every logit, in values and in gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.ops.log_probs import STATISTICS, LogitTransform, TokenLogProbs, log_probs, module_log_probs

N, D, V = 23, 12, 1200  # blocks are at least 256 wide: five of them


def twin(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, transform: LogitTransform
) -> TokenLogProbs:
    """The definition, with the whole logit matrix."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    log_p = torch.log_softmax(logits / transform.temperature, -1)
    p = log_p.exp()
    return TokenLogProbs(
        log_p[torch.arange(len(target)), target],
        -(p * log_p).sum(-1),
        logits.argmax(-1) == target,
        p.square().sum(-1).log().detach(),
    )


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype)
    weight = torch.randn(V, D, generator=generator, dtype=dtype)
    bias = torch.randn(V, generator=generator, dtype=dtype)
    target = torch.randint(0, V, (N,), generator=generator)
    target[:3] = (hidden @ weight.T + bias)[:3].argmax(-1)  # a few tokens that are the most likely one
    target[3], target[4] = 0, V - 1  # first and last column of the vocabulary
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), target


TRANSFORMS = {
    "plain": LogitTransform(),
    "temperature": LogitTransform(temperature=0.7),
    "scale": LogitTransform(scale=0.25),
    "softcap": LogitTransform(softcap=3.0),
    "all": LogitTransform(scale=1.5, softcap=4.0, temperature=1.3),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 1 << 30])  # the smallest blocks, and one block
def test_values_and_gradients_equal_the_twin(name: str, with_bias: bool, block_bytes: int) -> None:
    hidden, weight, bias, target = inputs()
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    used = bias if with_bias else None
    expected = twin(hidden, weight, target, used, TRANSFORMS[name])
    actual = log_probs(
        hidden, weight, target, used, transform=TRANSFORMS[name], statistics=STATISTICS, block_bytes=block_bytes
    )
    for field in ("log_prob", "entropy", "top1", "collision"):
        torch.testing.assert_close(getattr(actual, field), getattr(expected, field))
    torch.manual_seed(1)
    up, up_entropy = torch.randn(2, N, dtype=torch.float64)
    for loss in (
        lambda x: (up * x.log_prob).sum(),
        lambda x: (up_entropy * x.entropy).sum(),
        lambda x: (up * x.log_prob + up_entropy * x.entropy).sum(),
    ):
        wanted = torch.autograd.grad(loss(expected), leaves, retain_graph=True)
        got = torch.autograd.grad(loss(actual), leaves, retain_graph=True)
        for w, g in zip(wanted, got, strict=True):
            torch.testing.assert_close(g, w)


#: Columns of the vocabulary that are masked: blocks are 256 wide.
MASKED = {
    "first of a block": [0, 256],
    "whole block": list(range(256, 512)),
    "whole blocks at both ends": [*range(512), *range(1024, V)],
    "all but a few": [v for v in range(V) if v % 200 != 7],
    "all of a block but its last": list(range(255)),
}


def test_logits_are_what_the_head_says_unless_asked_otherwise() -> None:
    raw = torch.tensor([-3.0, 0.5, 40.0])
    assert torch.equal(LogitTransform()(raw), raw)


@pytest.mark.parametrize("value", [-math.inf, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("columns", MASKED)
@pytest.mark.parametrize("how", ["blocks", "one block", "module", "cool"])
def test_masked_columns(value: float, columns: str, how: str) -> None:
    """A bias that forbids tokens, in float32, against float64: values, and gradients without nan."""
    hidden, weight, bias, target = inputs(dtype=torch.float32)
    with torch.no_grad():
        bias[MASKED[columns]] = value
    leaves = [hidden, weight, bias]
    temperature = 0.7 if how == "cool" else 1.0
    if how == "module":
        head = nn.Linear(D, V)
        head.weight, head.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        leaves = [hidden, head.weight, head.bias]
        out = module_log_probs(head, hidden, target, statistics=STATISTICS)
    else:
        size = 1 << 30 if how == "one block" else 1
        transform = LogitTransform(temperature=temperature)
        out = log_probs(hidden, weight, target, bias, transform=transform, statistics=STATISTICS, block_bytes=size)

    allowed = torch.ones(V, dtype=torch.bool)
    allowed[MASKED[columns]] = False
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = (exact[0] @ exact[1].T + exact[2]) / temperature
    log_p = logits.log_softmax(-1)
    kept = log_p[:, allowed]
    chosen = log_p.gather(1, target[:, None])[:, 0]
    entropy = -(kept.exp() * kept).sum(-1)
    possible = allowed[target]
    torch.testing.assert_close(out.log_prob[possible].double(), chosen[possible], rtol=0, atol=2e-5)
    assert (out.log_prob[~possible] < -1e8).all()
    torch.testing.assert_close(out.entropy.double(), entropy, rtol=0, atol=2e-5)
    torch.testing.assert_close(out.collision.double(), (2 * kept).logsumexp(-1), rtol=0, atol=2e-5)
    assert torch.equal(out.top1, target == logits.argmax(-1))

    up = torch.linspace(-1, 1, N, dtype=torch.float64)
    wanted = torch.autograd.grad((up * chosen)[possible].sum() + (up * entropy).sum(), exact)
    loss = (up.float() * out.log_prob)[possible].sum() + (up.float() * out.entropy).sum()
    for got, want in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5)


def test_masked_target_is_impossible_and_has_the_gradient_of_log_softmax() -> None:
    hidden, weight, bias, target = inputs(dtype=torch.float32)
    with torch.no_grad():
        bias[target[5]] = -math.inf
    out = log_probs(hidden, weight, target, bias)
    logits = (hidden @ weight.T + bias).detach().requires_grad_()
    expected = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
    assert out.log_prob[5] == expected[5] == -math.inf
    (slope,) = torch.autograd.grad(expected.sum(), logits)
    (gradient,) = torch.autograd.grad(out.log_prob.sum(), bias)
    torch.testing.assert_close(gradient, slope.sum(0), rtol=1e-4, atol=1e-5)


def test_uniform_logits_by_hand() -> None:
    # A zero weight: every token has probability 1 / V. log p = -ln V, entropy ln V, sum p^2 = 1 / V.
    hidden, target = torch.randn(3, D), torch.tensor([0, 5, V - 1])
    out = log_probs(hidden, torch.zeros(V, D), target, statistics=STATISTICS)
    torch.testing.assert_close(out.log_prob, torch.full((3,), -math.log(V)))
    torch.testing.assert_close(out.entropy, torch.full((3,), math.log(V)))
    torch.testing.assert_close(out.collision, torch.full((3,), -math.log(V)))
    assert bool(out.top1.all())  # every token ties for the highest logit


def test_only_what_was_asked_for() -> None:
    hidden, weight, _, target = inputs()
    out = log_probs(hidden, weight, target, statistics=frozenset({"top1"}))
    assert out.entropy is None
    assert out.collision is None
    assert out.top1 is not None
    with pytest.raises(ValueError, match=r"'entropi'.*known"):
        log_probs(hidden, weight, target, statistics=frozenset({"entropi"}))


def test_gradients_are_skipped_where_not_required() -> None:
    hidden, weight, bias, target = inputs()
    out = log_probs(hidden, weight.detach(), target, bias.detach())
    out.log_prob.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert bias.grad is None
    out = log_probs(hidden.detach(), weight, target)
    out.log_prob.sum().backward()
    assert weight.grad is not None


def test_tied_weight_gets_both_gradients() -> None:
    _, weight, _, target = inputs()
    ids = torch.arange(N)
    expected = torch.autograd.grad(twin(weight[ids], weight, target, None, LogitTransform()).log_prob.sum(), weight)
    actual = torch.autograd.grad(log_probs(weight[ids], weight, target).log_prob.sum(), weight)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_keeps_float32_statistics(autocast: bool) -> None:
    hidden, weight, bias, target = (x.detach() for x in inputs(dtype=torch.float32))
    dtype = torch.float32 if autocast else torch.bfloat16
    leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = log_probs(*leaves[:2], target, leaves[2], statistics=STATISTICS)
    assert out.log_prob.dtype == out.entropy.dtype == out.collision.dtype == torch.float32
    rounded = [x.bfloat16().float() for x in (hidden, weight, bias)]
    expected = twin(rounded[0], rounded[1], target, rounded[2], LogitTransform())
    # A logit of about 10 is off by 2 ** -6 in bfloat16; a sum of 1200 probabilities in it would be off by far more.
    torch.testing.assert_close(out.log_prob, expected.log_prob, atol=0.1, rtol=0)
    torch.testing.assert_close(out.entropy, expected.entropy, atol=0.05, rtol=0)
    out.log_prob.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == dtype for x in leaves)
    exact = [x.detach().float().bfloat16().float().requires_grad_() for x in leaves]
    twin(exact[0], exact[1], target, exact[2], LogitTransform()).log_prob.sum().backward()
    for leaf, want in zip(leaves, exact, strict=True):
        assert (leaf.grad.float() - want.grad).norm() < 0.02 * want.grad.norm()


def test_certain_token_keeps_its_small_gradient_in_bfloat16() -> None:
    # p_t = 1 - 1e-4 or so: 1 - p must be formed in float32; p rounded to bfloat16 first would be 1 and the gradient 0.
    weight = torch.zeros(V, D)
    weight[7, 0] = 1.0
    hidden = torch.zeros(1, D)
    hidden[0, 0] = 16.0
    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = log_probs(hidden, weight, torch.tensor([7]))
    out.log_prob.sum().backward()
    others = (V - 1) * math.exp(-16.0)
    torch.testing.assert_close(hidden.grad[0, 0], torch.tensor(others / (1 + others)), rtol=0.02, atol=0.0)


def test_no_tokens() -> None:
    hidden, weight, _, target = inputs()
    out = log_probs(hidden[:0], weight, target[:0], statistics=STATISTICS)
    out.log_prob.sum().backward()
    assert out.log_prob.shape == (0,)
    assert not weight.grad.any()


def test_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    widest = 0
    linear = nn.functional.linear

    def spy(*args: Tensor) -> Tensor:
        nonlocal widest
        result = linear(*args)
        widest = max(widest, result.numel())
        return result

    monkeypatch.setattr(nn.functional, "linear", spy)
    hidden, weight, _, target = inputs()
    log_probs(hidden, weight, target, block_bytes=4 * N * 512).log_prob.sum().backward()
    assert widest == N * 512 < N * V


@pytest.mark.parametrize("rows", [7, 100])
def test_module_head_equals_the_twin(rows: int) -> None:
    hidden, weight, bias, target = inputs()
    head = nn.Linear(D, V, dtype=torch.float64)
    head.weight.data, head.bias.data = weight.detach().clone(), bias.detach().clone()
    expected = twin(hidden, weight, target, bias, TRANSFORMS["all"])
    actual = module_log_probs(head, hidden, target, transform=TRANSFORMS["all"], statistics=STATISTICS, rows=rows)
    for field in ("log_prob", "entropy", "top1", "collision"):
        torch.testing.assert_close(getattr(actual, field), getattr(expected, field))
    (expected.log_prob + expected.entropy).sum().backward()
    wanted, hidden.grad = hidden.grad, None
    (actual.log_prob + actual.entropy).sum().backward()
    torch.testing.assert_close(hidden.grad, wanted)
    torch.testing.assert_close(head.weight.grad, weight.grad)
    torch.testing.assert_close(head.bias.grad, bias.grad)


def test_transforms_of_small_and_large_numbers() -> None:
    assert LogitTransform(scale=3.0)(torch.tensor([2.0])).item() == 6.0
    assert LogitTransform(softcap=0.5)(torch.tensor([100.0])).item() == 0.5


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"softcap": -1.0}])
def test_bad_transform(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be > 0"):
        LogitTransform(**options)
