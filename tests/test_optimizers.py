"""Adam as TensorFlow computes it: steps worked by hand, and how it differs from torch's."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from rlhf_lightning.optimizers import AdamTF


def steps(optimizer: type[torch.optim.Optimizer], gradients: list[float], **options: float) -> list[float]:
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    made, out = optimizer([weight], **options), []  # type: ignore[call-arg]
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        made.step()
        out.append(weight.item())
    return out


def test_two_steps_by_hand() -> None:
    """lr 0.1, betas 0.9 and 0.999, eps 0.01, gradients 0.1 and then -0.2.

    Step 1: m = 0.01, v = 1e-5, rate = 0.1 sqrt(0.001) / 0.1; the weight falls by rate * 0.01 / (sqrt(1e-5) + 0.01).
    Step 2: m = -0.011, v = 4.999e-5, rate = 0.1 sqrt(1 - 0.999^2) / (1 - 0.81).
    Epsilon within the bias correction (torch) would make the first step 0.0909 instead of 0.0240.
    """
    first = 1 - 0.1 * math.sqrt(0.001) / 0.1 * 0.01 / (math.sqrt(1e-5) + 0.01)
    second = first + 0.1 * math.sqrt(1 - 0.999**2) / 0.19 * 0.011 / (math.sqrt(4.999e-5) + 0.01)
    weights = steps(AdamTF, [0.1, -0.2], lr=0.1, eps=0.01)
    assert weights == pytest.approx([first, second], rel=1e-12)
    assert 1 - weights[0] == pytest.approx(0.0240253, abs=1e-6)
    assert 1 - steps(torch.optim.Adam, [0.1], lr=0.1, eps=0.01)[0] == pytest.approx(0.0909091, abs=1e-6)


def test_first_steps_are_smaller_than_torchs_and_late_ones_alike() -> None:
    """Observation of the N details on the first epochs: for the same epsilon torch's Adam moves farther."""
    options = {"lr": 1e-3, "eps": 1e-5}
    adam_tf, torch_adam = (steps(kind, [1e-4] * 6000, **options) for kind in (AdamTF, torch.optim.Adam))
    moved = [(1 - a, 1 - b) for a, b in zip(adam_tf, torch_adam, strict=True)]
    assert moved[0][0] < 0.3 * moved[0][1]
    late = [(a[0] - b[0]) / (a[1] - b[1]) for a, b in zip(moved[5999:], moved[5998:], strict=False)]
    assert late[0] == pytest.approx(1.0, abs=0.01)


def test_without_epsilon_it_is_torchs() -> None:
    gradients = [0.3, -0.7, 0.2, 0.2]
    weights, expected = (steps(kind, gradients, lr=0.01, eps=1e-30) for kind in (AdamTF, torch.optim.Adam))
    assert weights == pytest.approx(expected, rel=1e-9)


def test_weight_decay_is_decoupled() -> None:
    options = {"lr": 0.1, "eps": 1e-30, "weight_decay": 0.5}
    weights, expected = (steps(kind, [0.3, 0.1], **options) for kind in (AdamTF, torch.optim.AdamW))
    assert weights == pytest.approx(expected, rel=1e-9)


def test_state_is_restored() -> None:
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    first = AdamTF([weights[0]], lr=0.1)
    weights[0].grad = torch.tensor([1.0, 2.0, 3.0])
    first.step()
    weights[1].data.copy_(weights[0].data)
    second = AdamTF([weights[1]], lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for weight, optimizer in zip(weights, (first, second), strict=True):
        weight.grad = torch.tensor([-1.0, 0.0, 1.0])
        optimizer.step()
    assert torch.equal(*weights)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"eps": 0.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}])
def test_numbers_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        AdamTF([torch.nn.Parameter(torch.ones(1))], **options)  # type: ignore[arg-type]
