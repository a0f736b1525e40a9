"""Effect of an aggregation on the length of responses: the bias that Dr. GRPO removes (arXiv:2503.20783).

The policy stops after each token with probability q, whatever it says, and is right or wrong whatever the length. Then
the length of wrong answers should have no gradient from being wrong. Its expectation is summed over all lengths.
"""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.losses import ppo
from rlhf_lightning.ops.aggregation import aggregate
from tests.helpers.policy_inputs import ragged

LONGEST = 120


def pull_on_stopping(how: str, advantage: float, q: float) -> float:
    """Expected gradient ascent on the logit of stopping, from responses of this advantage; above 0: shorter ones."""
    logit = torch.tensor(q, dtype=torch.float64).logit().requires_grad_(True)
    lengths = torch.arange(1, LONGEST + 1)
    probability = q * (1 - q) ** (lengths.double() - 1)
    layout = ragged([[0.0] * int(n) for n in lengths])
    last = layout.offset == lengths[layout.sequence] - 1
    stop, continues = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
    policy = layout.with_token(torch.where(last, stop, continues))
    old = policy.with_token(policy.token.detach())
    token = ppo(policy, old, policy.with_token(torch.full_like(policy.token.detach(), advantage))).token
    mean_length = (probability * lengths).sum().item()
    loss = aggregate(token, policy.sequence, policy.count, how, step_length=mean_length, length=100.0)
    (gradient,) = torch.autograd.grad((probability * loss).sum(), logit)
    return -gradient.item()


@pytest.mark.parametrize("q", [0.2, 0.5])
def test_grpo_makes_wrong_answers_longer_and_right_ones_shorter(q: float) -> None:
    """-A (E[1/T] - q), and E[1/T] > 1 / E[T] = q."""
    assert pull_on_stopping("seq_mean_token_mean", -1.0, q) < -0.01
    assert pull_on_stopping("seq_mean_token_mean", 1.0, q) > 0.01


@pytest.mark.parametrize("q", [0.2, 0.5])
@pytest.mark.parametrize("how", ["seq_mean_token_sum_norm", "seq_mean_token_sum", "token_mean"])
def test_a_divisor_that_all_responses_share_leaves_lengths_alone(how: str, q: float) -> None:
    for advantage in (-1.0, 1.0):
        assert pull_on_stopping(how, advantage, q) == pytest.approx(0.0, abs=1e-6)
