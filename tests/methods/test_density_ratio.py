"""BCO's weights by prompt: a regression checked against its own optimality, weights worked out by hand, checkpoints."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from rlhf_lightning import losses
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.methods import DensityRatio, Unpaired
from rlhf_lightning.methods.density_ratio import _logistic_regression
from rlhf_lightning.types import Example
from tests.helpers.training import VOCAB, Builder

EMBEDDING = torch.randn(VOCAB, 6, generator=torch.Generator().manual_seed(0))


def rows(prompts: list[list[int]], labels: list[float]) -> list[Example]:
    return [
        Example(prompt, [[1, 2]], row=f"rows:{i}", numbers={"desirable": [label]})
        for i, (prompt, label) in enumerate(zip(prompts, labels, strict=True))
    ]


def test_the_regression_is_at_its_optimum() -> None:
    """The gradient of the penalised log-loss, written out by hand, is zero; fails for another penalty or label."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(60, 4, dtype=torch.float64, generator=generator) * 3 + 1
    label = (features[:, 0] + torch.randn(60, dtype=torch.float64, generator=generator) > 1).double()
    coefficients, intercept = _logistic_regression(features, label, penalty=2.0)
    error = torch.sigmoid(features @ coefficients + intercept) - label
    std = features.std(0, correction=0)
    slope = ((features - features.mean(0)) / std).T @ error + 2.0 * coefficients * std
    assert slope.abs().max() < 1e-5
    assert error.sum().abs() < 1e-5
    assert coefficients[0] > coefficients[1:].abs().max()


def test_weights_are_ratios_of_the_densities() -> None:
    """Token 3 is twice as frequent among desirable prompts, token 4 among undesirable ones: weights of 2 and a half."""
    prompts = [[3]] * 200 + [[4]] * 100 + [[3]] * 100 + [[4]] * 200
    data = rows(prompts, [1.0] * 300 + [0.0] * 300)
    ratio = DensityRatio(prompts=300, low=0.1, high=10.0, penalty=1e-6)
    accuracy = ratio.fit(data, EMBEDDING)
    assert accuracy == pytest.approx(2 / 3)
    batch: Any = pack(rows([[3], [4], [3, 4], [3]], [0.0, 0.0, 0.0, 1.0]), kind="unpaired")
    # the mixed prompt's logit is the mean of log 2 and -log 2
    assert ratio(batch).tolist() == pytest.approx([2.0, 0.5, 1.0, 1.0], rel=1e-3)


def test_limits_and_equal_numbers_of_both_labels() -> None:
    prompts = [[3]] * 50 + [[4]] * 5
    ratio = DensityRatio(low=0.5, high=4.0, penalty=1e-3)
    ratio.fit(rows(prompts, [1.0] * 50 + [0.0] * 5), EMBEDDING)
    batch: Any = pack(rows([[3], [4]], [0.0, 0.0]), kind="unpaired")
    assert ratio(batch).tolist() == [4.0, 0.5]
    same = DensityRatio(low=0.01, high=100.0)
    same.fit(rows([[3]] * 60, [1.0] * 50 + [0.0] * 10), EMBEDDING)
    assert same(batch).tolist() == pytest.approx([1.0, 1.0], abs=1e-3), "the labels' own frequency is no density ratio"


@pytest.mark.parametrize("options", [{"low": 0.0}, {"low": 3.0, "high": 2.0}, {"prompts": 0}, {"penalty": 0.0}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="density_ratio"):
        DensityRatio(**options)


def test_one_label_only_is_refused() -> None:
    with pytest.raises(ValueError, match="responses of both labels"):
        DensityRatio().fit(rows([[1], [2]], [1.0, 1.0]), EMBEDDING)


def test_it_needs_a_loss_with_weights_and_the_data_module() -> None:
    with pytest.raises(ValueError, match="method=bco_udm"):
        Unpaired(Builder(), losses.kto, density_ratio=DensityRatio())
    module = Unpaired(Builder(), losses.bco, density_ratio=DensityRatio())
    module.configure_model()
    with pytest.raises(ValueError, match="was not fitted"):
        module(pack(rows([[1]], [1.0]), kind="unpaired"))


def test_the_loss_is_weighted_and_the_checkpoint_keeps_the_classifier() -> None:
    def made() -> Unpaired:
        module = Unpaired(Builder(), partial(losses.bco, beta=0.5), density_ratio=DensityRatio(penalty=1e-3))
        module.configure_model()
        return module

    first, second = made(), made()
    prompts = [[3]] * 20 + [[4]] * 20
    first.density_ratio.fit(rows(prompts, [1.0] * 15 + [0.0] * 5 + [1.0] * 5 + [0.0] * 15), EMBEDDING)
    batch: Any = pack(rows([[3], [4], [4]], [0.0, 0.0, 1.0]), kind="unpaired")
    weight = first.density_ratio(batch)
    assert weight[0] > 2 * weight[1]
    weighted = first(batch).diagnostics["group_loss"]
    torch.testing.assert_close(weighted, weight * 0.693147, atol=1e-5, rtol=1e-5)
    checkpoint: dict[str, Any] = {"state_dict": first.state_dict()}
    first.on_save_checkpoint(checkpoint)
    second._trainer = type("T", (), {"state": type("S", (), {"fn": "validate"})})()  # type: ignore[assignment]
    second.on_load_checkpoint(checkpoint)
    torch.testing.assert_close(second.density_ratio(batch), weight)
