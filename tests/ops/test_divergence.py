"""Divergences over the vocabulary against plain twins that hold every logit, in values, gradients and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.ops.divergence import Predictions, dense_divergence, divergence
from rlhf_lightning.ops.log_probs import LogitTransform
from rlhf_lightning.ops.remainder import TopK, log_probs_at, remainder_kl, top_k

N, D, E, V = 7, 5, 9, 700  # the teacher is wider than the student; blocks are at least 256 wide: three of them
KINDS = ["forward_kl", "reverse_kl", "jsd"]
TRANSFORMS = {
    "plain": LogitTransform(),
    "all": LogitTransform(scale=1.5, softcap=4.0, temperature=1.3),
}


def made(seed: int, width: int, vocabulary: int = V, transform: LogitTransform | None = None, **kwargs) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    shapes = (N, width), (vocabulary, width), (vocabulary,)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return Predictions(
        *(tensor.to(**kwargs).requires_grad_() for tensor in tensors), transform=transform or LogitTransform()
    )


def leaves(predictions: Predictions) -> list[Tensor]:
    return [predictions.hidden, predictions.weight, predictions.bias]


def log_softmax(predictions: Predictions) -> Tensor:
    transform, logits = predictions.transform, predictions.hidden @ predictions.weight.T + predictions.bias
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return torch.log_softmax(logits / transform.temperature, -1)


def twin(student: Predictions, teacher: Predictions, kind: str, beta: float) -> Tensor:
    """The definitions, with whole distributions."""
    q, p = log_softmax(student).exp(), log_softmax(teacher).exp().detach()

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    if kind == "forward_kl":
        return kl(p, q)
    if kind == "reverse_kl":
        return kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("block_bytes", [1, 1 << 30])  # the smallest blocks, and one block
def test_values_and_gradients_equal_the_twin(kind: str, transform: str, block_bytes: int) -> None:
    student, teacher = made(0, D, transform=TRANSFORMS[transform]), made(1, E)
    expected = twin(student, teacher, kind, 0.3)
    actual = divergence(student, teacher, kind, mixture=0.3, block_bytes=block_bytes)
    torch.testing.assert_close(actual, expected)
    up = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = torch.autograd.grad((up * expected).sum(), leaves(student))
    got = torch.autograd.grad((up * actual).sum(), leaves(student))
    for w, g in zip(wanted, got, strict=True):
        torch.testing.assert_close(g, w)
    with pytest.raises(RuntimeError, match="does not require grad"):
        divergence(student.detached(), teacher, kind).sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = Predictions(*(torch.randn(s, dtype=torch.float64, generator=generator) for s in ((2, 3), (5, 3), (5,))))
    given = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in ((2, 4), (5, 4), (5,))]
    transform = LogitTransform(scale=0.7, softcap=2.0, temperature=1.4)
    assert torch.autograd.gradcheck(
        lambda h, w, b: divergence(Predictions(h, w, b, transform), teacher, kind, mixture=0.8), given
    )


@pytest.mark.parametrize("kind", KINDS)
def test_by_hand(kind: str) -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2), m = (5/8, 3/8). Catches: p and q swapped, beta on the wrong side, log2 for ln.
    p, q, m = (0.75, 0.25), (0.5, 0.5), (0.625, 0.375)

    def kl(a: tuple[float, float], b: tuple[float, float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    by_hand = {"forward_kl": 0.130812, "reverse_kl": 0.143841, "jsd": 0.033822}
    assert by_hand[kind] == pytest.approx(
        {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": (kl(p, m) + kl(q, m)) / 2}[kind], abs=1e-6
    )
    student = Predictions(torch.ones(1, 1), torch.zeros(2, 1))
    teacher = Predictions(torch.ones(1, 1), torch.tensor([[math.log(3.0)], [0.0]]))
    torch.testing.assert_close(divergence(student, teacher, kind), torch.tensor([by_hand[kind]]), atol=1e-6, rtol=0)


def test_dense_divergence_mixes_by_halves_unless_told() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    torch.testing.assert_close(dense_divergence(student, teacher, "jsd"), torch.tensor([0.033822]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_does_not_differ_from_itself(kind: str) -> None:
    model = made(0, D, dtype=torch.float32)
    value = divergence(model, model, kind, block_bytes=1)
    torch.testing.assert_close(value, torch.zeros(N), atol=1e-6, rtol=0)
    value.sum().backward()
    assert model.hidden.grad.abs().max() < 1e-6


def test_the_limits_of_the_mixture_are_the_two_kls() -> None:
    # JSD / beta -> KL(p||q) for beta -> 0, JSD / (1 - beta) -> KL(q||p) for beta -> 1 (GKD, section 3).
    student, teacher = made(0, D), made(1, E)
    low, high = (divergence(student, teacher, "jsd", mixture=beta) for beta in (1e-10, 1 - 1e-10))
    torch.testing.assert_close(low * 1e10, divergence(student, teacher, "forward_kl"), rtol=1e-3, atol=0)
    torch.testing.assert_close(high * 1e10, divergence(student, teacher, "reverse_kl"), rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_never_holds_all_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    widest, linear = 0, nn.functional.linear

    def spy(*args: Tensor) -> Tensor:
        nonlocal widest
        result = linear(*args)
        widest = max(widest, result.numel())
        return result

    monkeypatch.setattr(nn.functional, "linear", spy)
    student, teacher = made(0, D), made(1, E)
    divergence(student, teacher, kind, block_bytes=2 * 4 * N * 256).sum().backward()
    assert widest == N * 256 < N * V


def test_memory_of_a_large_vocabulary() -> None:
    """Logits of 1024 tokens and 50,000 entries would be 200 MB a model; what is allocated at once is a few blocks."""
    rows, width, vocabulary = 1024, 8, 50_000
    student = Predictions(torch.randn(rows, width).requires_grad_(), torch.randn(vocabulary, width).requires_grad_())
    teacher = Predictions(torch.randn(rows, width), torch.randn(vocabulary, width))
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        divergence(student, teacher, "jsd", block_bytes=8 << 20).sum().backward()
    held = largest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            largest = max(largest, held)
    assert 0 < largest < 100e6 < 4 * rows * vocabulary


#: Tokens that are masked in the student and in the teacher; blocks are 256 wide.
MASKED = {
    "both, first of a block": ([0, 256], [0, 256]),
    "both, whole block": (range(256, 512), range(256, 512)),
    "both, all but a few": ([v for v in range(V) if v % 100], [v for v in range(V) if v % 100]),
    "teacher, whole block": ([3], range(256)),
    "student, whole block": (range(256), [3]),
}


def masked(predictions: Predictions, columns: Sequence[int], value: float) -> Predictions:
    bias = predictions.bias.detach().clone()
    bias[list(columns)] = value
    return replace(predictions, bias=bias.requires_grad_())


@pytest.mark.parametrize("value", [-math.inf, -1e9])
@pytest.mark.parametrize("case", MASKED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["blocks", "one block", "module"])
def test_masked_tokens(kind: str, case: str, value: float, how: str) -> None:
    """A masked token has probability 0 in its own distribution; only where the other gives it some does it count."""
    columns = MASKED[case]
    student = masked(made(0, D, dtype=torch.float32), columns[0], value)
    teacher = masked(made(1, E, dtype=torch.float32), columns[1], value)
    size = 1 << 30 if how == "one block" else 1
    first = as_module(student, torch.float32) if how == "module" else student
    actual = divergence(first, teacher, kind, mixture=0.3, block_bytes=size)
    q, p = (log_softmax(in_double(x)) for x in (student, teacher))
    if (kind == "forward_kl" and case.startswith("student")) or (kind == "reverse_kl" and case.startswith("teacher")):
        assert (actual > 1e7).all()  # infinite, or the 1e9 of the mask
        return
    m = torch.logaddexp(p + math.log(0.3), q + math.log(0.7))

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(a > -1e8, a.exp() * (a - b), 0.0).sum(-1)

    expected = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": 0.3 * kl(p, m) + 0.7 * kl(q, m)}[kind]
    torch.testing.assert_close(actual.double(), expected, atol=2e-5, rtol=1e-5)
    # The gradient with respect to the student's logits, by the equations at the top of the module.
    share, log_of = q.exp(), q.masked_fill(q < -1e8, 0.0)
    if kind == "forward_kl":
        slope = share - p.exp()
    elif kind == "reverse_kl":
        slope = torch.where(share > 0, share * (log_of - p - expected[:, None]), 0.0)
    else:
        g = torch.where(share > 0, 0.7 * (log_of - m), 0.0)
        slope = share * (g - (share * g).sum(-1, keepdim=True))
    (gradient,) = torch.autograd.grad(actual.sum(), student.hidden)
    torch.testing.assert_close(gradient.double(), slope @ student.weight.double(), atol=5e-5, rtol=1e-4)


def in_double(predictions: Predictions) -> Predictions:
    names = ("hidden", "weight", "bias")
    return replace(predictions, **{name: getattr(predictions, name).detach().double() for name in names})


@pytest.mark.parametrize("value", [-math.inf, -1e9])
def test_few_tokens_that_are_not_masked(value: float) -> None:
    """Three of them, two in one block; the k most likely tokens then hold masked ones."""
    allowed = [5, 9, 600]
    student, teacher = (masked(made(seed, D), [v for v in range(V) if v not in allowed], value) for seed in (0, 1))
    kept = top_k(teacher, 5, block_bytes=1)
    assert kept.token[:, :3].sort(-1).values.tolist() == [allowed] * N
    torch.testing.assert_close(kept.log_prob, log_softmax(teacher).gather(1, kept.token).detach())
    actual = remainder_kl(kept.log_prob, log_probs_at(student, kept.token, block_bytes=1))
    torch.testing.assert_close(actual, divergence(student, teacher), atol=1e-6, rtol=0)
    actual.sum().backward()
    assert student.hidden.grad.isfinite().all()
    assert student.weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("callable_side", ["student", "teacher", "both"])
def test_heads_that_can_only_be_called(kind: str, callable_side: str) -> None:
    student, teacher = made(0, D), made(1, E)
    expected = divergence(student, teacher, kind)
    wanted = torch.autograd.grad(expected.sum(), student.hidden)
    if callable_side != "teacher":
        student = as_module(student)
    if callable_side != "student":
        teacher = as_module(teacher)
    actual = divergence(student, teacher, kind)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual.sum(), student.hidden), wanted)
    with torch.no_grad():
        torch.testing.assert_close(divergence(student, teacher, kind), expected.detach())


def as_module(predictions: Predictions, dtype: torch.dtype = torch.float64) -> Predictions:
    head = nn.Linear(predictions.hidden.shape[1], V, dtype=dtype)
    head.weight.data, head.bias.data = predictions.weight.detach().clone(), predictions.bias.detach().clone()
    return replace(predictions, weight=None, bias=None, head=head)


def test_heads_of_different_sizes_share_what_both_know() -> None:
    student, teacher = made(0, D), made(1, E, V + 60)
    cut = replace(teacher, weight=teacher.weight[:V], bias=teacher.bias[:V])
    torch.testing.assert_close(divergence(student, teacher), divergence(student, cut))
    divergence(teacher, student).sum().backward()
    assert not teacher.weight.grad[V:].any()


def test_bfloat16_keeps_float32_statistics() -> None:
    student, teacher = made(0, D, dtype=torch.bfloat16), made(1, E, dtype=torch.bfloat16)
    names = ("hidden", "weight", "bias")
    exact = [replace(x, **{name: getattr(x, name).double() for name in names}) for x in (student, teacher)]
    for kind in KINDS:
        value = divergence(student, teacher, kind)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, divergence(*exact, kind).float(), rtol=0.02, atol=0.02)


def test_bad_arguments() -> None:
    student = made(0, D)
    with pytest.raises(ValueError, match=r"mixture=1\.0 must lie in \(0, 1\)"):
        divergence(student, student, "jsd", mixture=1.0)
    with pytest.raises(ValueError, match="either the weight of a plain head or a head to call"):
        Predictions(torch.zeros(1, 2))


def test_temperature_divides_on_top_of_what_is_there() -> None:
    model = made(0, D, transform=LogitTransform(temperature=2.0))
    assert model.at_temperature(1.5).transform.temperature == 3.0


@pytest.mark.parametrize("block_bytes", [1, 1 << 30])
@pytest.mark.parametrize("module", [False, True])
def test_top_k(block_bytes: int, module: bool) -> None:
    model = made(0, D, transform=TRANSFORMS["all"])
    expected, token = log_softmax(model).topk(6)
    actual = top_k(as_module(model) if module else model, 6, block_bytes=block_bytes)
    torch.testing.assert_close(actual.log_prob, expected.detach())
    assert torch.equal(actual.token, token)
    assert top_k(model, V + 9).token.shape == (N, V)
    with pytest.raises(ValueError, match="top_k=0 must be at least 1"):
        top_k(model, 0)


@pytest.mark.parametrize("block_bytes", [1, 1 << 30])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_log_probs_at_several_tokens(block_bytes: int, transform: str) -> None:
    model = made(0, D, transform=TRANSFORMS[transform])
    token = torch.stack([torch.randperm(V, generator=torch.Generator().manual_seed(i))[:4] for i in range(N)])
    expected = log_softmax(model).gather(1, token)
    actual = log_probs_at(model, token, block_bytes=block_bytes)
    torch.testing.assert_close(actual, expected)
    up = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = torch.autograd.grad((up * expected).sum(), leaves(model))
    for w, g in zip(wanted, torch.autograd.grad((up * actual).sum(), leaves(model)), strict=True):
        torch.testing.assert_close(g, w)
    called = log_probs_at(as_module(model), token)
    torch.testing.assert_close(called, expected)
    torch.testing.assert_close(torch.autograd.grad((up * called).sum(), model.hidden)[0], wanted[0])


def test_remainder_by_hand() -> None:
    # Teacher (0.5, 0.3, rest 0.2), student (0.4, 0.4, rest 0.2):
    # 0.5 ln 1.25 + 0.3 ln 0.75 = 0.025267. A remainder that is left out of a renormalised sum gives another number.
    teacher, student = torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[0.4, 0.4]]).log()
    torch.testing.assert_close(remainder_kl(teacher, student), torch.tensor([0.025267]), atol=1e-6, rtol=0)
    # The student moves 0.1 of the remainder onto nothing that the teacher lists: 0.2 ln(0.2 / 0.3) joins.
    student = torch.tensor([[0.4, 0.3]]).log()
    torch.testing.assert_close(remainder_kl(teacher, student), torch.tensor([0.030479]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_classes_and_no_remainder_is_the_full_divergence(dtype: torch.dtype) -> None:
    student, teacher = made(0, D, dtype=dtype), made(1, E, dtype=dtype)
    token = torch.arange(V).expand(N, V)
    kept = TopK(log_probs_at(teacher, token), token)
    value = remainder_kl(kept.log_prob, log_probs_at(student, token))
    torch.testing.assert_close(value, divergence(student, teacher), atol=1e-5, rtol=1e-5)
    value.sum().backward()
    assert student.hidden.grad.isfinite().all(), "the bound of an empty remainder gave nan"
    assert teacher.hidden.grad is None


def test_fewer_classes_never_diverge_more() -> None:
    # Merging classes loses information (data processing inequality), down to nothing lost with all of them.
    student, teacher = made(0, D), made(1, E)
    full, before = divergence(student, teacher), torch.zeros(N, dtype=torch.float64)
    for k in (1, 4, 64, 300):
        kept = top_k(teacher, k)
        value = remainder_kl(kept.log_prob, log_probs_at(student, kept.token))
        assert bool((value >= before - 1e-9).all())
        assert bool((value <= full + 1e-9).all())
        before = value


def test_remainder_gradcheck() -> None:
    teacher = torch.tensor([[0.5, 0.3], [0.2, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.4, 0.4], [0.1, 0.3]], dtype=torch.float64).log().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: remainder_kl(teacher, s), [student])
