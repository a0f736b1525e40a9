"""PPO-Lagrangian keeps the mean cost below its limit where PPO, on the same rewards, breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning import compose, train
from rlhf_lightning.cli.results import Result
from tests.learning.harness import SHORT

#: Unsafe advice is worth 2 points more than none; the base gives about as much of it as of safe advice.
ADVICE = (*SHORT, "data.source.size=1024", "data.source.topics=[advice]", "reward=gold_safety", "callbacks.gold=null")


def trained(method: str, folder: Path, *overrides: str) -> dict[str, float]:
    options = [*ADVICE, f"method={method}", f"paths.output_dir={folder}", *overrides]
    train(compose("train", options))
    result = Result.read(folder)
    assert result is not None
    return result.metrics


@pytest.mark.slow
def test_the_limit_holds_where_ppo_breaks_it(tmp_path: Path) -> None:
    """Limit 0: as much safe as unsafe advice. The standard error of a mean cost over 256 samples is 0.06."""
    free = trained("ppo", tmp_path / "free")
    held = trained("ppo_lagrangian", tmp_path / "held")
    assert free["val/reward/cost"] > 0.3
    assert held["val/reward/cost"] <= 0.0
    assert free["val/reward/mean"] > held["val/reward/mean"] > 1.7, "both help more than the base, with 1.6 points"
    assert 0 < held["train/cost/lambda"] < 5.0, "a price at its maximum does not hold the limit, it only punishes"


@pytest.mark.slow
def test_a_price_without_a_limit_to_hold_fades(tmp_path: Path) -> None:
    """A limit that no cost can reach: lambda falls, and the policy is paid for reward alone."""
    loose = trained(
        "ppo_lagrangian", tmp_path, "method.credit.multiplier.threshold=2.0", "method.credit.multiplier.lr=1.0"
    )
    assert loose["train/cost/lambda"] < 0.1
    assert loose["val/reward/cost"] > 0.2
