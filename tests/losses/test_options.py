"""Declarations of losses, and errors for options that are not allowed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from rlhf_lightning import losses
from rlhf_lightning.losses import (
    WeightedSum,
    aot,
    bco_pair,
    dft,
    dpo,
    ipo,
    needs,
    odpo,
    pairwise_cringe,
    preferred_ft,
    sft,
    simpo,
    wpo,
)
from rlhf_lightning.losses import alpha_dpo as alpha_dpo_loss
from rlhf_lightning.losses.options import INPUTS, Range, check_cut, loss_function, option_values, validate
from rlhf_lightning.types import Pair, PreferenceLoss
from tests.helpers.loss_inputs import PREFERENCE, SUPERVISED, Numbers, run

BATCH = Numbers([[-1.0]], [[-2.0]], [[-1.5]], [[-1.5]], [[-1.0]], [[-1.0]], margin=[2.0])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (dpo, {"policy", "reference"}),
        (partial(dpo, beta=0.2), {"policy", "reference"}),
        (simpo, {"policy"}),
        (odpo, {"policy", "reference", "margin"}),
        (wpo, {"policy", "reference", "collision"}),
        (bco_pair, {"policy", "reference", "running"}),
        (sft, {"policy"}),
        (WeightedSum({"a": {"loss": simpo, "weight": 1.0}, "b": {"loss": odpo, "weight": 1.0}}),
         {"policy", "reference", "margin"}),
    ],
)  # fmt: skip
def test_needs(loss: Callable[..., Any], expected: set[str]) -> None:
    assert needs(loss) == expected


@pytest.mark.parametrize("name", [*PREFERENCE, *SUPERVISED])
def test_every_loss_declares_itself(name: str) -> None:
    loss = getattr(losses, name)
    assert needs(loss) <= INPUTS.keys()
    validate(loss)  # defaults are within their own ranges
    for parameter in inspect.signature(loss).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            hint = get_type_hints(loss, include_extras=True)[parameter.name]
            validate(partial(loss, **{parameter.name: parameter.default}))
            if hint is not bool:  # a number says its range, a word its alternatives
                assert get_origin(hint) is Annotated or len(get_args(hint)) > 1, f"{name}.{parameter.name}"


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("(0, inf)", [1e-9, 3.0], [0.0, -1.0, float("inf")]),
        ("[0, 0.5)", [0.0, 0.499], [0.5, -1e-9]),
        ("[0, 1]", [0.0, 1.0], [1.0001, -0.1]),
        ("(0, 1]", [1.0], [0.0, 1.1]),
        ("(-inf, inf)", [-1e30, 0.0], [float("inf"), float("-inf")]),
    ],
)
def test_range(interval: str, inside: list[float], outside: list[float]) -> None:
    assert all(value in Range(interval) for value in inside)
    assert not any(value in Range(interval) for value in outside)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("dpo", {"beta": -0.1}, r"loss dpo: beta=-0.1 is not allowed, it must be a number in \(0, inf\)"),
        ("dpo", {"beta": 0.0}, r"beta=0.0"),
        ("dpo", {"beta": float("nan")}, r"beta=nan"),
        ("dpo", {"beta": True}, r"beta=True"),
        ("dpo", {"beta": "0.1"}, r"beta='0.1'"),
        ("cdpo", {"label_smoothing": 0.5}, r"label_smoothing=0.5 .* \[0, 0.5\)"),
        ("robust_dpo", {"label_smoothing": 0.5}, r"label_smoothing=0.5"),
        ("exo", {"label_smoothing": 0.0}, r"label_smoothing=0.0 .* \(0, 0.5\)"),
        ("ipo", {"aggregate": "max"}, r"aggregate='max' is not allowed, it must be one of \['mean', 'sum'\]"),
        ("discopop", {"tau": 1.5}, r"tau=1.5 .* \(0, 1\]"),
        ("ld_dpo", {"alpha": 1.5}, r"alpha=1.5 .* \[0, 1\]"),
        ("f_dpo", {"divergence": "tv"}, r"divergence='tv'"),
        ("f_dpo", {"alpha": -0.5}, r"alpha=-0.5"),
        ("wpo", {"clamp": 1}, r"clamp=1 is not allowed, it must be true or false"),
        ("kto_pair", {"detach_kl": "yes"}, r"detach_kl='yes'"),
        ("simpo", {"gamma": -1.0}, r"gamma=-1.0 .* \[0, inf\)"),
        ("rpo", {"nll_reduction": "mean"}, r"nll_reduction='mean'"),
        ("alpha_dpo", {"eps": 0.0}, r"eps=0.0"),
        ("beta_dpo", {"min_beta": 0.0}, r"min_beta=0.0"),
        ("dpop", {"penalty": -1.0}, r"penalty=-1.0"),
        ("slic", {"delta": -1.0}, r"delta=-1.0"),
        ("alpha_po", {"alpha": float("inf")}, r"alpha=inf"),
    ],
)
def test_option_out_of_range(loss: str, options: dict[str, Any], message: str) -> None:
    """At construction (validate, before weights load) and at a call alike."""
    with pytest.raises(ValueError, match=message):
        validate(partial(getattr(losses, loss), **options))
    with pytest.raises(ValueError, match=message):
        run(loss, BATCH, **options)


def test_whole_numbers_are_numbers() -> None:
    validate(partial(dpo, beta=1))
    assert run("dpo", BATCH, beta=1).loss.item() == run("dpo", BATCH, beta=1.0).loss.item()


def test_values_of_an_option() -> None:
    """Values that a method reads from its loss: given, by default, of each term of a sum, or none."""
    assert option_values(partial(pairwise_cringe, k=7), "k") == [7]
    assert option_values(pairwise_cringe, "k") == [5]
    assert option_values(dpo, "k") == []
    terms = {"a": {"loss": pairwise_cringe, "weight": 1.0}, "b": {"loss": dpo, "weight": 1.0}}
    assert option_values(WeightedSum(terms), "k") == [5]


def test_counts_are_whole_numbers() -> None:
    validate(partial(pairwise_cringe, k=2.0))  # type: ignore[arg-type]
    for value in (0, 1.5, True, float("inf"), "2"):
        with pytest.raises(ValueError, match=r"loss pairwise_cringe: k=.* must be a whole number in \[1, inf\)"):
            validate(partial(pairwise_cringe, k=value))  # type: ignore[arg-type]


def test_supervised_options_are_checked() -> None:
    with pytest.raises(ValueError, match="reduction='mean'"):
        validate(partial(dft, reduction="mean"))  # type: ignore[arg-type]


def test_misspelt_option_names_the_closest() -> None:
    with pytest.raises(ValueError, match=r"loss dpo has no option 'betta' \(did you mean 'beta'\?\)"):
        validate(partial(dpo, betta=0.1))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"its options are \['aggregate', 'beta'\]"):
        validate(partial(ipo, temperature=1.0))  # type: ignore[call-arg]


def test_missing_option_says_how_to_set_it() -> None:
    def custom(policy: Pair, *, strength: float) -> PreferenceLoss:
        raise AssertionError("validation must not call the loss")

    with pytest.raises(ValueError, match=r"loss custom needs a value for \['strength'\]: set method.loss.strength="):
        validate(custom)
    validate(partial(custom, strength=1.0))


def test_unknown_input_is_refused() -> None:
    def custom(policy: Pair, beta: float = 0.1) -> PreferenceLoss:
        raise AssertionError("validation must not call the loss")

    with pytest.raises(ValueError, match=r"asks for \['beta'\], which no method provides.*keyword-only"):
        needs(custom)
    with pytest.raises(ValueError, match=r"asks for \['beta'\]"):
        validate(custom)


def test_loss_function_keeps_name_and_signature() -> None:
    @loss_function
    def custom(policy: Pair, *, beta: float = 0.1) -> PreferenceLoss:
        """A custom loss."""
        raise AssertionError("not called")

    assert (custom.__name__, custom.__doc__) == ("custom", "A custom loss.")
    assert list(inspect.signature(custom).parameters) == ["policy", "beta"]


@pytest.mark.parametrize("margin", [[0.0, 2.0, -1.0], [float("nan"), 2.0, 1.0]])
def test_odpo_names_the_pairs_without_a_positive_margin(margin: list[float]) -> None:
    batch = Numbers(*([[[-1.0]] * 3] * 4), margin=margin)
    bad = [i for i, value in enumerate(margin) if not value > 0]
    with pytest.raises(ValueError, match=rf"pairs \[{', '.join(map(str, bad))}\] .* margin of .*Drop ties"):
        run("odpo", batch)


# ---- weighted sums


def terms(**weights: float) -> dict[str, dict[str, Any]]:
    return {name: {"loss": getattr(losses, name), "weight": weight} for name, weight in weights.items()}


def test_weighted_sum_adds_its_terms() -> None:
    combined = WeightedSum(terms(simpo=0.5, dpo=2.0, preferred_ft=-1.0))
    output = run(combined, BATCH)
    parts = {name: run(name, BATCH) for name in ("simpo", "dpo", "preferred_ft")}
    expected = 0.5 * parts["simpo"].loss + 2.0 * parts["dpo"].loss - parts["preferred_ft"].loss
    assert output.loss.tolist() == pytest.approx(expected.tolist())
    assert output.loss.requires_grad
    # rewards are the first term's
    assert output.chosen_reward.tolist() == parts["simpo"].chosen_reward.tolist()
    assert output.rejected_reward.tolist() == parts["simpo"].rejected_reward.tolist()
    for name, part in parts.items():
        logged = output.diagnostics[f"loss/{name}"]
        assert logged.tolist() == part.loss.tolist()
        assert not logged.requires_grad


def test_weighted_sum_passes_on_diagnostics_and_observations() -> None:
    output = run(WeightedSum(terms(orpo=1.0, bco_pair=1.0)), BATCH)
    assert output.observed is not None
    assert output.observed.tolist() == run("bco_pair", BATCH).observed.tolist()  # type: ignore[union-attr]
    assert {"orpo/nll", "orpo/log_odds", "bco_pair/delta", "loss/orpo", "loss/bco_pair"} == output.diagnostics.keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one term"),
        ({"a": {"loss": dpo}}, "term 'a' of WeightedSum must have exactly loss and weight"),
        ({"a": {"loss": dpo, "weight": float("inf")}}, "weight=inf must be a finite number"),
        ({"a": {"loss": dpo, "weight": "1"}}, "weight='1' must be a finite number"),
        ({"a": {"loss": partial(dpo, beta=-1.0), "weight": 1.0}}, "loss dpo: beta=-1.0"),
        (
            {"a": {"loss": bco_pair, "weight": 1.0}, "b": {"loss": alpha_dpo_loss, "weight": 1.0}},
            r"terms \['a', 'b'\] of WeightedSum all ask for running statistics",
        ),
    ],
)
def test_weighted_sum_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedSum(given)


def test_validate_looks_into_weighted_sums() -> None:
    combined = WeightedSum({"a": {"loss": aot, "weight": 1.0}, "b": {"loss": preferred_ft, "weight": 0.5}})
    validate(combined)
    combined.weights["b"] = float("nan")
    with pytest.raises(ValueError, match="term 'b'"):
        validate(combined)


@pytest.mark.parametrize(
    ("loss", "way_out"),
    [
        (losses.aot, "devices=1$"),
        (losses.aot_unpaired, "devices=1$"),
        (partial(losses.kto_pair, beta=0.2), "devices=1$"),
        (losses.beta_dpo, r"or method\.loss\.level=pair"),
        (losses.odin, "devices=1$"),
        (losses.coin, r"or method\.loss\.in_batch=false"),
        (losses.WeightedSum({name: {"loss": getattr(losses, name), "weight": 1.0} for name in ("dpo", "aot")}), "="),
    ],
)
def test_losses_that_compare_groups_refuse_to_be_cut(loss, way_out) -> None:
    check_cut(loss, 1)
    with pytest.raises(ValueError, match=rf"cut every step into 2 micro-batches.*accumulate_grad_batches=1.*{way_out}"):
        check_cut(loss, 2)


@pytest.mark.parametrize(
    "loss",
    [
        losses.dpo,
        partial(losses.beta_dpo, level="pair"),
        partial(losses.odin, length_weight=0.0),
        partial(losses.coin, in_batch=False),
    ],
)
def test_other_losses_can_be_cut(loss) -> None:
    check_cut(loss, 2)
