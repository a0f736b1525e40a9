"""Hand-worked implicit rewards, observations and diagnostics, on the two pairs of golden_rows.py."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.helpers.loss_inputs import PREFERENCE, Numbers, run
from tests.losses.golden_rows import AB

LN2 = math.log(2)

# name, options, running, expected rewards of A's and B's chosen and rejected responses
REWARDS = [
    ("dpo", {"beta": 0.5}, [1.0, -1.5], [-1.0, 0.5]),
    ("ipo", {"beta": 0.5, "aggregate": "mean"}, [0.5, -1.5], [-1 / 3, 0.25]),
    ("ipo", {"beta": 0.5, "aggregate": "sum"}, [1.0, -1.5], [-1.0, 0.5]),
    ("sigmoid_norm", {"beta": 3.0}, [3.0, -9.0], [-2.0, 1.5]),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.25}, [1.0, -1.5], [-0.625, 0.5]),
    ("f_dpo", {"beta": 1.0, "divergence": "forward_kl"}, [1 - math.exp(-2), 1 - math.exp(3)],
     [1 - math.exp(2), 1 - math.exp(-1)]),
    ("alpha_po", {"beta": 2.0, "alpha": 0.25}, [8 * (1 - math.exp(0.375)), 8 * (1 - math.exp(1))],
     [8 * (1 - math.exp(0.5)), 8 * (1 - math.exp(0.25))]),
    ("alpha_dpo", {"beta": 2.0, "alpha": 0.1}, [-3.2, -7.4], [-4 + 0.2 * 2 / 3, -2.1]),
    ("simpo", {"beta": 2.0}, [-3.0, -8.0], [-4.0, -2.0]),
    ("simper", {}, [math.exp(-1.5), math.exp(-4)], [math.exp(-2), math.exp(-1)]),
    ("orpo", {"beta": 0.5}, [-0.75, -2.0], [-1.0, -0.5]),
    ("odds_ratio_judgment", {}, [-1.5, -4.0], [-2.0, -1.0]),
    ("cpo", {"beta": 0.5}, [-1.5, -2.0], [-3.0, -1.0]),
    ("slic", {}, [-3.0, -4.0], [-6.0, -2.0]),
    ("preferred_ft", {}, [-3.0, -4.0], [-6.0, -2.0]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "chosen", "rejected"), REWARDS, ids=lambda value: str(value)[:40])
def test_rewards(name: str, options: dict[str, Any], chosen: list[float], rejected: list[float]) -> None:
    output = run(name, AB, **options)
    assert output.chosen_reward.tolist() == pytest.approx(chosen)
    assert output.rejected_reward.tolist() == pytest.approx(rejected)


LOG_RATIO_REWARDS = sorted(
    set(PREFERENCE) - {name for name, *_ in REWARDS if name not in {"dpo"}}
)  # all others: beta * rho


@pytest.mark.parametrize("name", LOG_RATIO_REWARDS)
def test_rewards_are_scaled_log_ratios(name: str) -> None:
    output = run(name, AB, beta=0.5)
    assert output.chosen_reward.tolist() == pytest.approx([1.0, -1.5])
    assert output.rejected_reward.tolist() == pytest.approx([-1.0, 0.5])


def test_observed_numbers_and_diagnostics() -> None:
    # What the running statistics are made of: catches a wrong sign, the wrong reward, a missing half.
    assert run("bco_pair", AB, beta=0.5).observed.tolist() == pytest.approx([1.0, -1.5, -1.0, 0.5])
    assert run("beta_dpo", AB).observed.tolist() == pytest.approx([4.0, -4.0])
    assert run("alpha_dpo", AB).observed.tolist() == pytest.approx([5 / 3, -3.5])
    seen = AB.pick([0, 1])
    seen.running = (0.5, 2.0, 4.0)
    assert run("bco_pair", seen).diagnostics["delta"].item() == 0.5
    assert run("alpha_dpo", seen, gamma=0.25, alpha=0.1).diagnostics["target"].tolist() == pytest.approx(
        [0.25 + 0.175 / 3, 0.05]
    )
    assert run("alpha_dpo", seen, gamma=0.25, eps=2.0).diagnostics["target"].tolist() == [0.25, 0.25]
    for seen.running in ((0.5, 2.0, 4.0), (0.5, 0.0, 1.0)):  # a single gap has a mean too
        beta = run("beta_dpo", seen, beta=0.1, alpha=0.2, level="pair").diagnostics["beta"]
        assert beta.tolist() == pytest.approx([0.17, 0.01])
    assert run("rpo", AB).diagnostics["nll"].tolist() == pytest.approx([2.0, 8 / 3])
    assert run("cpo", AB).diagnostics["nll"].tolist() == pytest.approx([2.0, 8 / 3])
    assert run("orpo", AB).diagnostics["nll"].tolist() == pytest.approx([2.0, 8 / 3])
    assert run("orpo", AB).diagnostics["log_odds"].tolist() == pytest.approx([0.607069, -3.440190])
    assert run("dpop", AB).diagnostics["penalised"].tolist() == [0.0, 1.0]
    slightly_up = Numbers([[-1.0]], [[-1.0]], [[-1.5]], [[-1.0]])
    assert run("dpop", slightly_up).diagnostics["penalised"].tolist() == [0.0]
    assert run("odpo", AB, alpha=0.5).diagnostics["offset"].tolist() == pytest.approx([LN2, -0.5 * LN2])
    assert run("wpo", AB).diagnostics["weight"].tolist() == pytest.approx([math.exp(-2), 1.0])
    assert run("slic", AB, delta=1.0).diagnostics["active"].tolist() == [0.0, 1.0]
