"""Methods of two stages: what the first one has learned helps the second one.

The standard error of an accuracy over the 256 held-out pairs is 0.03.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning import compose, train
from rlhf_lightning.cli.results import Result
from tests.learning.harness import SHORT, FlippedGradients

pytestmark = pytest.mark.slow
FLIPPED = (
    f"+callbacks.flipped._target_={FlippedGradients.__module__}.{FlippedGradients.__name__}",
    "allow_targets=[tests]",
)


def accuracy(folder: Path, *options: str) -> float:
    """Held-out accuracy of a run of ``experiment=tiny``; nan where it has none."""
    train(compose("train", [*SHORT, *options, f"paths.output_dir={folder}"]))
    result = Result.read(folder)
    assert result is not None
    return result.metrics.get("val/reward/accuracy", float("nan"))


def started_from(folder: Path) -> list[str]:
    return ["model=hub", f"model.name={folder / 'export' / 'last'}", "callbacks=tiny"]


def test_armorm_weighs_the_ratings_of_its_first_stage(tmp_path):
    """Measured: 0.66; 0.6 is three standard errors above chance.

    Ratings that are weighed equally have 0.66 already, so the claim about the gate is the second one: it can also be
    led to the ratings that mislead (0.43). With the paper's temperature of 10 it hardly moves in so few steps.
    """
    accuracy(tmp_path / "ratings", "method=attribute_regression", "callbacks=[tiny,export]")
    head = ["method.head.layers=[64]", "method.head.dropout=0", "method.head.temperature=1"]
    gate = ["method=armorm", *started_from(tmp_path / "ratings"), *head, "optimizer.lr=3e-3", "trainer.max_epochs=2"]
    assert accuracy(tmp_path / "gate", *gate) > 0.6
    assert accuracy(tmp_path / "flipped", *gate, *FLIPPED) < 0.5


def test_preference_model_pretraining_saves_human_pairs(tmp_path):
    """96 clean pairs, four times over, behind two thousand pairs of which one in five is the wrong way round.

    Measured over two draws of the 96: 0.57 and 0.65 without the first stage, 0.70 and 0.72 with it. The first stage is
    ranked. Binarised (experiment=pmp) it did not help in this world: 0.55 and 0.58 after one epoch, 0.57 and 0.55 after
    four, whose own held-out accuracy was 0.58.
    """
    noisy = ["data.source.flips=0.2", "data.source.seed=7"]
    accuracy(tmp_path / "pmp", "method=bradley_terry", *noisy, "callbacks=[tiny,export]")
    few = ["method=bradley_terry", "data.source.size=96", "trainer.max_epochs=4"]
    alone, pretrained = [], []
    for draw in (1, 2):
        same = [*few, f"data.source.seed={draw}"]
        alone.append(accuracy(tmp_path / f"alone{draw}", *same))
        pretrained.append(accuracy(tmp_path / f"both{draw}", *same, *started_from(tmp_path / "pmp")))
    assert sum(pretrained) / 2 > sum(alone) / 2 + 0.05, (alone, pretrained)
