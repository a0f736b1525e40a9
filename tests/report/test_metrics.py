"""Ranking metric, better direction of each metric, and choice of metrics to draw."""

from __future__ import annotations

import pytest

from rlhf_lightning.report.metrics import frontier_axes, mode_of, ranking_metric, shown
from rlhf_lightning.report.reading import ReportError


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("val/gold/reward", "max"),
        ("val/reward/accuracy", "max"),
        ("val/reward/margin", "max"),
        ("val/loss", "min"),
        ("val/ece", "min"),
        ("val/gold/kl", None),
        ("val/kl/reference", None),
        ("val/reward/rejected", None),
        ("train/reward/length_bias", None),
        ("train/reward/unscored", "min"),
        ("val/reward/judge/parse_failures", "min"),
        ("val/reward/judge/rating/4", None),
        ("train/reward/std", None),
        ("train/reward/unscored_bonus", "max"),  # a term of a reward
        ("train/lr", None),
    ],
)
def test_better_direction(name, mode):
    assert mode_of(name) == mode


def test_ranking_metric():
    """The requested metric, else the one that all runs optimised, else the first of the list."""
    logged = {"val/loss", "val/reward/accuracy", "train/lr", "val/mine"}
    assert ranking_metric(logged, "train/lr", ["val/loss"]) == "train/lr"
    assert ranking_metric(logged, None, ["val/mine"]) == "val/mine"
    assert ranking_metric(logged, None, ["val/mine", "val/loss"]) == "val/reward/accuracy"
    assert ranking_metric(logged, None, ["val/gone"]) == "val/reward/accuracy"
    assert ranking_metric(logged | {"val/sample/reward"}) == "val/sample/reward"
    assert ranking_metric({"val/sample/reward", "val/reward/mean"}) == "val/reward/mean"
    assert ranking_metric({"train/lr"}) is None
    with pytest.raises(ReportError, match=r"(?s)val/los.*Did you mean val/loss\?.*logged: train/lr, val/loss"):
        ranking_metric(logged, "val/los")


def test_axes_of_the_frontier():
    gold = {"val/gold/reward", "val/gold/kl", "val/kl/reference", "val/reward/accuracy"}
    assert frontier_axes(gold) == ("val/gold/kl", "val/gold/reward")
    assert frontier_axes(gold - {"val/gold/reward", "val/gold/kl"}) == ("val/kl/reference", "val/reward/accuracy")
    assert frontier_axes({"train/kl/reference", "val/reward/margin"}) == ("train/kl/reference", "val/reward/margin")
    assert frontier_axes({"train/log_ratio/mean", "val/reward/margin"}) is None, "no KL of samples"
    sampled = {"val/kl/reference", "val/sample/reward", "val/reward/mean", "val/reward/accuracy"}
    assert frontier_axes(sampled) == ("val/kl/reference", "val/sample/reward")
    assert frontier_axes({"val/reward/accuracy"}) is None
    assert frontier_axes(gold, reward="val/reward/accuracy") == ("val/gold/kl", "val/reward/accuracy")


def test_order_of_shown_metrics():
    logged = {"train/lr", "train/throughput/padding", "train/zeta", "train/loss", "val/gold/reward", "val/kl/k3"}
    assert shown(logged, 9) == ["val/gold/reward", "train/loss", "train/zeta"]
    assert shown(logged, 2, ["train/lr"]) == ["train/lr", "val/gold/reward"]
