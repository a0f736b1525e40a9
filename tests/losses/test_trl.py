"""Our losses against TRL 1.16's own code, on the numbers that benchmarks/trl_loss_values.py recorded.

The fixture holds, for every loss type of TRL, the loss of a batch and its gradient with respect to each log-prob. Both
have to agree to 1e-5 (relative where the number is large). Where TRL differs on purpose, a test below says how.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.losses import WeightedSum, bco_pair, dft, dpo, preferred_ft, sft
from tests.helpers.loss_inputs import Numbers, gradients, ragged, run

FIXTURE = json.loads((Path(__file__).parent / "trl_losses.json").read_text())
BATCHES = {
    name: Numbers(**batch, margin=[1.0] * len(batch["policy_chosen"]), running=(0.5, 1.0, 8.0))
    for name, batch in FIXTURE["batches"].items()
}


def mpo(beta: float) -> WeightedSum:
    def dpo_term(**inputs: Any) -> Any:
        return dpo(**inputs, beta=beta)

    def bco_term(**inputs: Any) -> Any:
        return bco_pair(**inputs, beta=beta, delta="zero")

    dpo_term.needs = {"policy", "reference"}  # type: ignore[attr-defined]
    bco_term.needs = {"policy", "reference", "running"}  # type: ignore[attr-defined]
    return WeightedSum(
        {
            "preference": {"weight": 0.8, "loss": dpo_term},
            "quality": {"weight": 0.2, "loss": bco_term},
            "generation": {"weight": 1.0, "loss": preferred_ft},
        }
    )


#: What ours is of TRL's where it is not the same: the authors of SPPO halve the sum of both squares.
SCALE = {"sppo_hard": 0.5}

#: TRL's setting -> our loss and its options; beta is added for those with "@".
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("dpo", {}),
    "hinge": ("hinge", {}),
    "ipo": ("ipo", {"aggregate": "mean"}),
    "exo_pair": ("exo", {"label_smoothing": 1e-3}),
    "nca_pair": ("nca", {}),
    "robust": ("robust_dpo", {"label_smoothing": 0.2}),
    "bco_pair": ("bco_pair", {"delta": "zero"}),
    "sppo_hard": ("sppo", {}),
    "aot": ("aot", {"label_smoothing": 0.1}),
    "aot_unpaired": ("aot_unpaired", {"label_smoothing": 0.1}),
    "apo_zero": ("apo_zero", {}),
    "apo_down": ("apo_down", {}),
    "discopop": ("discopop", {"tau": 0.05}),
    "sigmoid_norm": ("sigmoid_norm", {}),
    "forward_kl": ("f_dpo", {"divergence": "forward_kl"}),
    "js_divergence": ("f_dpo", {"divergence": "js"}),
    "alpha_divergence": ("f_dpo", {"divergence": "alpha", "alpha": 0.3, "alpha_convention": "trl"}),
    "ld_alpha": ("ld_dpo", {"alpha": 0.5}),
    "use_weighting": ("wpo", {"clamp": False}),
    "rpo": ("rpo", {"nll_weight": 0.005}),
    "simpo": ("simpo", {"beta": 2.0, "gamma": 1.0}),
    "simpo_with_nll": ("simpo", {"beta": 2.0, "gamma": 1.0, "nll_weight": 1.0}),
    "alpha_po": ("alpha_po", {"beta": 2.5, "gamma": 0.1, "alpha": 0.25}),
    "cpo": ("cpo", {"beta": 0.1, "nll_weight": 1.0}),
    "cpo_smoothed": ("cpo", {"beta": 0.1, "nll_weight": 0.5, "label_smoothing": 0.1}),
    "orpo": ("orpo", {"beta": 0.1}),
    # TRL ignores label_smoothing with its sigmoid loss: it computes DPO where one asked for cDPO.
    "label_smoothing_of_sigmoid": ("dpo", {}),
}


def trl(setting: str, batch: str) -> tuple[float, torch.Tensor]:
    """TRL's loss and gradient (chosen tokens, then rejected ones)."""
    value = FIXTURE["results"][setting]["values"][batch]
    return value["loss"], torch.tensor([x for slot in value["gradient"] for row in slot for x in row])


def assert_agrees(loss: float, gradient: torch.Tensor, setting: str, batch: str) -> None:
    share, (expected_loss, expected_gradient) = SCALE.get(setting.partition("@")[0], 1.0), trl(setting, batch)
    expected_loss, expected_gradient = share * expected_loss, share * expected_gradient
    # exp of a log-ratio near 40 is the one place where float32 itself is coarser than 1e-5
    tolerance = 2e-5 if batch == "far" and setting.startswith(("forward_kl", "alpha_div")) else 1e-5
    assert loss == pytest.approx(expected_loss, rel=tolerance, abs=1e-5)
    scale = max(1.0, expected_gradient.abs().max().item())
    torch.testing.assert_close(gradient / scale, expected_gradient / scale, atol=tolerance, rtol=tolerance)


CASES = [(name, batch) for name in FIXTURE["results"] for batch in BATCHES if name.partition("@")[0] in OURS]


@pytest.mark.parametrize(("setting", "batch"), CASES)
def test_agrees_with_trl(setting: str, batch: str) -> None:
    trl_name, _, beta = setting.partition("@")
    name, options = OURS[trl_name]
    options = options | ({"beta": float(beta)} if beta else {})
    numbers = BATCHES[batch]
    loss = run(name, numbers, torch.float32, **options).loss.mean().item()
    assert_agrees(loss, torch.cat(gradients(name, numbers, torch.float32, **options)), setting, batch)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_weighted_sum_agrees_with_trl(batch: str, beta: float) -> None:
    numbers = BATCHES[batch]
    loss = run(mpo(beta), numbers, torch.float32).loss.mean().item()
    assert_agrees(loss, torch.cat(gradients(mpo(beta), numbers, torch.float32)), f"mpo@{beta}", batch)


@pytest.mark.parametrize("batch", BATCHES)
def test_preferred_ft_agrees_with_trl(batch: str) -> None:
    numbers = BATCHES[batch]
    loss = run("preferred_ft", numbers, torch.float32).loss.mean().item()
    assert_agrees(loss, torch.cat(gradients("preferred_ft", numbers, torch.float32)), "sft@0.1", batch)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("loss", "setting"), [(sft, "nll"), (dft, "dft")])
def test_supervised_agrees_with_trl(loss: Any, setting: str, batch: str) -> None:
    numbers = BATCHES[batch]
    policy = ragged(numbers.policy_chosen + numbers.policy_rejected, torch.float32)
    value = loss(policy).mean()
    value.backward()
    assert policy.token.grad is not None
    assert_agrees(value.item(), policy.token.grad, setting, batch)


def test_every_setting_of_trl_is_compared() -> None:
    compared = {*OURS, "mpo", "sft", "nll", "dft"}
    assert {name.partition("@")[0] for name in FIXTURE["results"]} == compared
    assert FIXTURE["trl"].startswith("1.16")


# The documented differences: a default or an option of ours that is not what TRL computes.
DIFFERENT: list[tuple[str, str, dict[str, Any]]] = [
    ("label_smoothing_of_sigmoid@0.5", "cdpo", {"beta": 0.5, "label_smoothing": 0.1}),
    ("bco_pair@0.5", "bco_pair", {"beta": 0.5, "delta": "running"}),
    ("alpha_divergence@0.5", "f_dpo", {"beta": 0.5, "divergence": "alpha", "alpha": 0.3}),
    ("ipo@0.5", "ipo", {"beta": 0.5, "aggregate": "sum"}),
    ("simpo_with_nll", "simpo", {"beta": 2.0, "gamma": 1.0}),
]


@pytest.mark.parametrize(("setting", "name", "options"), DIFFERENT, ids=lambda value: str(value)[:30])
def test_documented_differences(setting: str, name: str, options: dict[str, Any]) -> None:
    ours = run(name, BATCHES["ordinary"], torch.float32, **options).loss.mean().item()
    assert abs(ours - trl(setting, "ordinary")[0]) > 1e-2


def test_wpo_clamps_where_trl_does_not() -> None:
    likely = BATCHES["ordinary"].pick([0])
    likely.collision_chosen, likely.collision_rejected = [[-5.0]], [[-5.0, -5.0, -5.0]]
    clamped, unclamped = (run("wpo", likely, clamp=c).loss.item() for c in (True, False))
    assert clamped == pytest.approx(run("dpo", likely, beta=0.01).loss.item())
    assert unclamped > 10 * clamped


def test_discopop_stays_finite_where_trl_does_not() -> None:
    z = torch.tensor(-200.0)
    assert (torch.sigmoid(z / 0.05) * torch.exp(-z)).isnan()  # TRL's product
    hopeless = Numbers([[-300.0]], [[-100.0]], [[-100.0]], [[-100.0]])
    assert run("discopop", hopeless, torch.float32, beta=1.0, tau=0.05).loss.item() == pytest.approx(200.0)
