"""Hand-worked values: the rows of golden_rows.py, the supervised losses, and step 0."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlhf_lightning.losses import dft, sft
from tests.helpers.loss_inputs import PREFERENCE, Numbers, gradients, ragged, run
from tests.losses.golden_rows import AB, ROWS, Golden


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_golden_value(row: Golden) -> None:
    batch = AB.pick(row.pairs)
    batch.running = row.running
    batch.mean_length = None
    for dtype in (torch.float32, torch.float64):
        loss = run(row.loss, batch, dtype, **row.options).loss
        torch.testing.assert_close(loss.detach().double(), torch.tensor(row.expected).double(), atol=1e-5, rtol=2e-6)


def test_every_preference_loss_has_a_golden_row() -> None:
    assert {row.loss for row in ROWS} == set(PREFERENCE)


def test_length_regularised_dpo_counts_tokens() -> None:
    """Three tokens against one and a gap of 0: alpha times 2 and not a half of it, log(1 + e^-0.2)."""
    batch = Numbers([[-1.0, -1.0, -1.0]], [[-3.0]], [[-1.0, -1.0, -1.0]], [[-3.0]])
    assert run("r_dpo", batch, alpha=0.1).loss.item() == pytest.approx(math.log(1 + math.exp(-0.2)))


# What a loss is worth when the policy still equals the reference. A different number at step 0 is the cheapest sign of
# dropout, a wrong dtype, other positions, or an adapter that is still on.
LN2 = math.log(2)
STEP_0: dict[str, tuple[dict[str, Any], float]] = {
    "dpo": ({}, LN2),
    "cdpo": ({"label_smoothing": 0.3}, LN2),
    "robust_dpo": ({"label_smoothing": 0.3}, LN2),
    "sigmoid_norm": ({}, LN2),
    "aot": ({}, LN2),
    "aot_unpaired": ({}, LN2),
    "f_dpo": ({"divergence": "js"}, LN2),
    "ld_dpo": ({}, LN2),
    "dpop": ({}, LN2),
    "beta_dpo": ({}, LN2),
    "hinge": ({}, 1.0),
    "ipo": ({"beta": 0.1}, 25.0),
    "exo": ({"label_smoothing": 1e-3}, 2.7612),
    "sppo": ({"beta": 1e-3}, 2.5e5),
    "sppo_soft": ({"beta": 1e-3}, 2.5e5),  # without other probabilities 1 and 0
    "kto_pair": ({}, 0.5),
    "bco_pair": ({"delta": "running"}, 2 * LN2),
    "nca": ({}, 2 * LN2),
    "apo_zero": ({}, 1.0),
    "apo_down": ({}, 1.0),
    "discopop": ({}, 0.5 * LN2 + 0.5),
}


@pytest.mark.parametrize("name", STEP_0)
def test_value_at_step_0(name: str) -> None:
    options, expected = STEP_0[name]
    start = Numbers(AB.policy_chosen, AB.policy_rejected, AB.policy_chosen, AB.policy_rejected)
    output = run(name, start, torch.float32, **options)
    torch.testing.assert_close(output.loss, torch.full((2,), expected), atol=5e-5, rtol=1e-6)
    assert torch.equal(output.chosen_reward, torch.zeros(2))
    assert torch.equal(output.rejected_reward, torch.zeros(2))
    if name != "apo_down":  # its two terms cancel for the chosen response
        assert gradients(name, start, **options)[0].abs().max() > 0
    assert gradients(name, start, **options)[1].abs().max() > 0


@pytest.mark.parametrize(("detach_kl", "expected"), [(False, 0.0125), (True, 0.00625)])
def test_kto_pair_at_step_0_pulls_through_its_reference_points(detach_kl: bool, expected: float) -> None:
    # beta/8 for each of 2 pairs from its own term, and as much again through the mean that is exactly 0: the published
    # code's clamp has a gradient there, a relu has none.
    start = Numbers(AB.policy_chosen, AB.policy_rejected, AB.policy_chosen, AB.policy_rejected)
    chosen, rejected = gradients("kto_pair", start, beta=0.1, detach_kl=detach_kl)
    assert chosen.tolist() == pytest.approx([-expected] * 3)
    assert rejected.tolist() == pytest.approx([expected] * 5)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
def test_every_divergence_starts_at_log_2(divergence: str) -> None:
    start = Numbers(AB.policy_chosen, AB.policy_rejected, AB.policy_chosen, AB.policy_rejected)
    loss = run("f_dpo", start, divergence=divergence).loss
    torch.testing.assert_close(loss, torch.full_like(loss, LN2))


def test_ipo_target_depends_on_beta() -> None:
    start = Numbers(AB.policy_chosen, AB.policy_rejected, AB.policy_chosen, AB.policy_rejected)
    assert run("ipo", start, beta=0.01).loss.tolist() == pytest.approx([2500.0, 2500.0])


@pytest.mark.parametrize(
    ("reduction", "expected"), [("token_mean", [2.0, 8 / 3]), ("response_mean", [1.5, 4.0]), ("sum", [3.0, 4.0])]
)
def test_sft(reduction: str, expected: list[float]) -> None:
    loss = sft(ragged(AB.policy_chosen), reduction=reduction)  # type: ignore[arg-type]
    assert loss.tolist() == pytest.approx(expected)


def test_dft_weighs_each_token_by_its_probability() -> None:
    # A: (e^-1 * 1 + e^-2 * 2) / 1.5, B: e^-4 * 4 / 1.5. Catches: no weight; a weight that carries gradient.
    policy = ragged(AB.policy_chosen)
    loss = dft(policy)
    assert loss.tolist() == pytest.approx([0.425700, 0.048842], abs=1e-5)
    loss.mean().backward()
    assert policy.token.grad is not None
    # the mean over 2 responses of 1/1.5 is 1/N with N = 3 tokens, and d(p log p)/d(log p) with p constant is p
    assert policy.token.grad.tolist() == pytest.approx([-math.exp(x) / 3 for x in (-1, -2, -4)])


def test_dft_response_mean() -> None:
    loss = dft(ragged(AB.policy_chosen), reduction="response_mean")
    assert loss.tolist() == pytest.approx([0.319275, 0.073263], abs=1e-5)


def test_token_mean_uses_the_length_of_the_whole_step() -> None:
    # With a mean of 6 tokens over the step, A's 3 nats count 0.5. Catches: the micro-batch's own mean.
    assert sft(ragged([[-1.0, -2.0]], mean_length=6.0)).tolist() == pytest.approx([0.5])
