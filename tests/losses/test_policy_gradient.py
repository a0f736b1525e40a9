"""Policy-gradient losses: hand-worked values, plain-loop twins, gradients, and what holds for every input."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlhf_lightning.losses as losses
from rlhf_lightning.losses.options import validate
from rlhf_lightning.losses.policy_gradient import is_sequence_level
from tests.helpers import reference_policy
from tests.helpers.loss_inputs import assert_detached
from tests.helpers.policy_inputs import Responses, responses, run, value_and_gradient
from tests.losses.golden_policy import AB, ROWS, Golden

LN2 = math.log(2)
NAMES = ["reinforce", "ppo", "gspo", "gspo_token", "gmpo", "cispo"]
CLIPPED = ["ppo", "gspo", "gspo_token", "gmpo", "cispo"]
WIDE: dict[str, dict[str, float]] = {
    "ppo": {"eps_low": 1.0, "eps_high": 1e6},
    "gspo": {"eps_low": 1.0, "eps_high": 1e6},
    "gspo_token": {"eps_low": 1.0, "eps_high": 1e6},
    "gmpo": {"clip_low": 50.0, "clip_high": 50.0},
    "cispo": {"eps_abs_high": 1e6},
}
EPSILON = st.floats(0.01, 0.9)
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "reinforce": st.just({}),
    "ppo": st.fixed_dictionaries(
        {
            "ratio": st.sampled_from(["token", "sequence"]),
            "eps_low": EPSILON,
            "eps_high": EPSILON,
            "dual_clip": st.one_of(st.none(), st.floats(1.1, 4.0)),
        }
    ),
    "gspo": st.fixed_dictionaries({"eps_low": EPSILON, "eps_high": EPSILON}),
    "gspo_token": st.fixed_dictionaries({"eps_low": EPSILON, "eps_high": EPSILON}),
    "gmpo": st.fixed_dictionaries({"clip_low": EPSILON, "clip_high": EPSILON}),
    "cispo": st.one_of(
        st.fixed_dictionaries({"eps_low": st.one_of(st.none(), EPSILON), "eps_abs_high": st.floats(1.0, 6.0)}),
        st.fixed_dictionaries({"eps_low": EPSILON, "eps_high": EPSILON, "eps_abs_high": st.none()}),
    ),
}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_golden_value(row: Golden) -> None:
    for dtype in (torch.float32, torch.float64):
        _, result = run(row.loss, AB, dtype, **row.options)
        torch.testing.assert_close(
            result.token.detach().double(), torch.tensor(row.expected).double(), atol=2e-6, rtol=1e-6
        )
        assert_detached(result)
        if row.clipped is not None:
            shares = [result.diagnostics[f"clip/{side}"].mean().item() for side in ("low", "high")]
            assert shares == pytest.approx(row.clipped), "share of clipped tokens"


def test_every_loss_has_a_golden_row() -> None:
    assert {row.loss for row in ROWS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_equals_its_twin(name: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(responses(same_advantage=False), OPTIONS[name])
    def check(batch: Responses, options: dict[str, Any]) -> None:
        expected = [x for row in getattr(reference_policy, name)(batch, **options) for x in row]
        _, result = run(name, batch, **options)
        torch.testing.assert_close(
            result.token.detach(), torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=1e-6
        )

    check()


@pytest.mark.parametrize("name", ["ppo", "gspo", "gmpo", "reinforce"])
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    """Of the losses whose value is what is differentiated; GSPO-token and CISPO stop gradients on purpose."""
    options = WIDE.get(name, {})
    _, gradient = value_and_gradient(name, AB, **options)
    flat = [x for row in AB.policy for x in row]
    for index, x in enumerate(flat):
        moved = []
        for step in (1e-6, -1e-6):
            values = [*flat[:index], x + step, *flat[index + 1 :]]
            batch = dataclasses.replace(AB, policy=[values[:3], values[3:]])
            moved.append(value_and_gradient(name, batch, **options)[0])
        assert gradient[index].item() == pytest.approx((moved[0] - moved[1]) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("name", CLIPPED)
def test_first_step_is_the_policy_gradient(name: str) -> None:
    """Where the policy is the old one all ratios are exactly 1, nothing is clipped and the gradient is REINFORCE's."""
    start = dataclasses.replace(AB, old=AB.policy)
    for dtype in (torch.float32, torch.float64):
        _, result = run(name, start, dtype)
        assert torch.equal(result.diagnostics["ratio/mean"], torch.ones(5, dtype=dtype))
        assert result.diagnostics["clip/low"].sum() == result.diagnostics["clip/high"].sum() == 0
        assert torch.equal(result.diagnostics["approx_kl"], torch.zeros(5, dtype=dtype))
    _, expected = value_and_gradient("reinforce", start)
    _, gradient = value_and_gradient(name, start)
    torch.testing.assert_close(gradient, expected)


@settings(max_examples=40, deadline=None)
@given(responses(longest=1), EPSILON, EPSILON)
def test_gspo_is_grpo_at_length_1(batch: Responses, low: float, high: float) -> None:
    for name in ("gspo", "gspo_token"):
        value, gradient = value_and_gradient(name, batch, eps_low=low, eps_high=high)
        expected, expected_gradient = value_and_gradient("ppo", batch, eps_low=low, eps_high=high)
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(gradient, expected_gradient)


@settings(max_examples=60, deadline=None)
@given(responses(), EPSILON, EPSILON)
def test_gspo_token_is_gspo_for_one_advantage_a_response(batch: Responses, low: float, high: float) -> None:
    value, gradient = value_and_gradient("gspo_token", batch, eps_low=low, eps_high=high)
    expected, expected_gradient = value_and_gradient("gspo", batch, eps_low=low, eps_high=high)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(gradient, expected_gradient)


@settings(max_examples=40, deadline=None)
@given(responses())
def test_gmpo_without_a_clip_is_gspo_without_one(batch: Responses) -> None:
    value, gradient = value_and_gradient("gmpo", batch, **WIDE["gmpo"])
    expected, expected_gradient = value_and_gradient("gspo", batch, **WIDE["gspo"])
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize(
    ("name", "options", "low", "high"),
    [
        ("ppo", {"eps_low": 0.5, "eps_high": 1.0}, [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
        ("gmpo", {"clip_low": LN2, "clip_high": LN2}, [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]),  # A = 0 is clipped as A < 0 is
        ("cispo", {"eps_low": 0.5, "eps_high": 1.0, "eps_abs_high": None}, [0, 0, 1, 0, 1], [0, 0, 0, 1, 0]),
    ],
)
def test_a_ratio_at_the_border_is_not_clipped(
    name: str, options: dict[str, Any], low: list[int], high: list[int]
) -> None:
    """Ratios 1/2 and 2 exactly, on the side where they would gain, and e^-3 and e^3 where there is nothing to gain."""
    batch = Responses(
        policy=[[-LN2], [0.0], [-3.0], [0.0], [-3.0]],
        old=[[0.0], [-LN2], [0.0], [-3.0], [0.0]],
        advantage=[[-1.0], [1.0], [0.0], [0.0], [0.5]],
    )
    _, result = run(name, batch, **options)
    assert result.diagnostics["clip/low"].tolist() == low
    assert result.diagnostics["clip/high"].tolist() == high
    # k3 of samples of the old policy: rho - 1 - log rho
    k3 = [-0.5 + LN2, 1 - LN2, math.exp(-3) + 2, math.exp(3) - 4, math.exp(-3) + 2]
    assert result.diagnostics["approx_kl"].tolist() == pytest.approx(k3)


def test_a_clipped_token_has_no_gradient_but_in_cispo() -> None:
    """The second token of A is above the band, the second of B below it."""
    _, ppo = value_and_gradient("ppo", AB)
    assert [g == 0 for g in ppo.tolist()] == [False, True, False, False, True]
    _, cispo = value_and_gradient("cispo", AB, eps_low=0.2, eps_high=0.2, eps_abs_high=None)
    # -w A / T / B
    torch.testing.assert_close(
        cispo, torch.tensor([-math.exp(0.1) / 6, -1.2 / 6, -0.8 / 6, 2.4 / 4, 1.6 / 4], dtype=torch.float64)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_likelier_good_response_lowers_the_loss(name: str) -> None:
    _, gradient = value_and_gradient(name, dataclasses.replace(AB, old=AB.policy))
    assert (gradient[:3] < 0).all()
    assert (gradient[3:] > 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_extreme_ratios_stay_finite(name: str, far: float) -> None:
    batch = dataclasses.replace(AB, old=[[x + far for x in row] for row in AB.old])
    value, gradient = value_and_gradient(name, batch, dtype=torch.float32)
    assert math.isfinite(value)
    assert gradient.isfinite().all()


def test_options_that_do_not_go_together_say_so() -> None:
    for options in ({"eps_high": 0.2}, {"eps_abs_high": None}):
        with pytest.raises(ValueError, match=r"eps_high=.*eps_abs_high=.*set the other to null"):
            run("cispo", AB, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ppo", {"dual_clip": 1.0}, r"dual_clip=1.0 is not allowed, it must be a number in \(1, inf\)"),
        ("ppo", {"eps_low": 1.5}, r"eps_low=1.5 is not allowed, it must be a number in \[0, 1\]"),
        ("ppo", {"ratio": "mean"}, "ratio='mean' is not allowed, it must be one of"),
        ("gspo", {"eps_high": -1.0}, "eps_high=-1.0 is not allowed"),
        ("cispo", {"eps_abs_high": -1.0}, "eps_abs_high=-1.0 is not allowed"),
    ],
)
def test_wrong_options_fail_before_anything_is_loaded(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(partial(getattr(losses, name), **options))


def test_null_is_an_option_where_the_annotation_says_so() -> None:
    validate(partial(losses.ppo, dual_clip=None))
    with pytest.raises(ValueError, match="eps_high=None is not allowed"):
        validate(partial(losses.ppo, eps_high=None))


def test_losses_of_whole_responses_are_known() -> None:
    assert is_sequence_level(losses.gspo)
    assert is_sequence_level(partial(losses.gmpo, clip_low=0.1))
    assert is_sequence_level(partial(losses.ppo, ratio="sequence"))
    assert not is_sequence_level(partial(losses.ppo, ratio="token"))
    assert not is_sequence_level(losses.gspo_token)
