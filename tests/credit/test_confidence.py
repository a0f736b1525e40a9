"""RLSC: what a sample's own probability is worth, and that it climbs E sum p squared."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.credit import self_confidence
from tests.helpers.policy_inputs import ragged

LOG_PROBS = [[math.log(0.5), math.log(0.8)], [math.log(0.1)]]
GROUP = torch.tensor([0, 0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.5, 0.2]),  # 0.4 and 0.1, plus 0.1
        ({"alpha": 0.0}, [0.4, 0.4, 0.1]),
        ({"alpha": 0.0, "confidence": "length_normalised"}, [math.sqrt(0.4), math.sqrt(0.4), 0.1]),
        ({"alpha": 0.0, "confidence": "token"}, [0.5, 0.8, 0.1]),
        ({"alpha": 0.0, "normalize": True}, [1.6, 1.6, 0.4]),  # over their mean, 0.25
        ({"alpha": 1.0, "normalize": True}, [2.6, 2.6, 1.4]),  # alpha is added behind
        ({"alpha": 0.0, "normalize": True, "confidence": "token"}, [0.5 * 3 / 1.4, 0.8 * 3 / 1.4, 0.1 * 3 / 1.4]),
    ],
)
def test_golden(options: dict[str, object], expected: list[float]) -> None:
    got = self_confidence(ragged(LOG_PROBS, torch.float32), GROUP, **options)
    torch.testing.assert_close(got.token, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_responses_of_unequal_length_weigh_as_responses() -> None:
    """Two tokens of 1/4 together and one of 1/2: their mean is 3/8; by tokens it would be 1/3."""
    rows = ragged([[math.log(0.5), math.log(0.5)], [math.log(0.5)]], torch.float32)
    got = self_confidence(rows, GROUP, alpha=0.0, normalize=True).token
    torch.testing.assert_close(got, torch.tensor([2 / 3, 2 / 3, 4 / 3]))


def test_estimates_half_the_gradient_of_the_sum_of_squares() -> None:
    """p = (.5, .3, .2): F = .38, dF/dlogit = (.12, -.048, -.072); the mean over samples must be half of it."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().requires_grad_(True)
    log_p = logits.log_softmax(-1)
    p = log_p.exp().detach()
    weight = self_confidence(ragged([[x] for x in log_p.tolist()]), torch.zeros(3, dtype=torch.long), alpha=0.0).token
    torch.testing.assert_close((p * p).sum(), torch.tensor(0.38))
    expectation = (p * weight.float() * log_p).sum()  # each response is drawn with probability p
    (gradient,) = torch.autograd.grad(expectation, logits)
    torch.testing.assert_close(gradient, torch.tensor([0.06, -0.024, -0.036]))


def test_alpha_alone_has_no_gradient_in_expectation() -> None:
    """So at equal temperatures it does nothing; at a lower sampling temperature it sharpens."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().requires_grad_(True)
    log_p = logits.log_softmax(-1)
    for temperature, still in ((1.0, True), (0.5, False)):
        drawn = (logits.detach() / temperature).softmax(-1)
        (gradient,) = torch.autograd.grad((drawn * 0.1 * log_p).sum(), logits, retain_graph=True)
        assert bool(gradient.abs().max() < 1e-7) is still
        if not still:
            assert gradient[0] > 0


def test_long_responses_vanish_unless_normalised() -> None:
    """200 tokens at -0.8 nats are e^-160, 0 in float32; normalised the likelier response still weighs more."""
    long = ragged([[-0.8] * 200, [-0.81] * 200], torch.float32)
    first = [0, 200]
    assert self_confidence(long, GROUP, alpha=0.0).token[first].tolist() == [0.0, 0.0]
    ratio = math.exp(2.0)
    expected = [2 * ratio / (1 + ratio), 2 / (1 + ratio)]
    got = self_confidence(long, GROUP, alpha=0.0, normalize=True).token[first]
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-3, rtol=1e-3)
