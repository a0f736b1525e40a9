"""Changes of hidden states move the gold reward: steering, and alpha."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning import compose, train
from rlhf_lightning.cli import steer
from rlhf_lightning.cli.results import Result
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.decoding.generation import generate
from rlhf_lightning.world import TinyEvaluator, TinyWorld
from tests.learning.harness import SHORT

QUICK = (*SHORT, "data.source.size=512")


def gold(path: Path, coefficient: float) -> float:
    """Mean gold reward of 152 responses of the steered base to held-out prompts; its standard error is 0.15 points."""
    source = TinyWorld(steering={"path": str(path), "coefficient": coefficient})
    evaluator = TinyEvaluator()
    prompts = [ids for ids in evaluator.prompts() for _ in range(4)]
    responses = generate(Actor(source.load()), prompts, max_new_tokens=40, temperature=1.0, seed=1)
    return sum(evaluator.gold(p, a).reward for p, a in zip(prompts, responses, strict=True)) / len(prompts)


def test_steering_moves_the_gold_reward_both_ways(tmp_path: Path) -> None:
    """Along the difference of a good and a bad context responses get better, against it worse."""
    file = tmp_path / "kind.safetensors"
    options = ["model=tiny", "data=tiny", "data.source.size=128", "data.validation=null", "contrast=instructions"]
    assert steer.main(["build", *options, "layers=[2]", "examples=256", f"output={file}"]) == 0
    worse, base, better = (gold(file, coefficient) for coefficient in (-1.0, 0.0, 1.0))
    assert worse + 0.6 < base < better - 0.4


def _trained(folder: Path, method: str, *options: str) -> dict[str, Any]:
    train(compose("train", [*QUICK, f"method={method}", *options, f"paths.output_dir={folder}"]))
    result = Result.read(folder)
    assert result is not None
    return result.metrics


@pytest.mark.slow
def test_the_gold_reward_moves_with_alpha(tmp_path: Path) -> None:
    gains = {
        alpha: _trained(tmp_path / str(alpha), "representation_fit", f"method.loss.alpha={alpha}")
        for alpha in (0.0, 0.5, 1.0)
    }
    rewards = [metrics["val/gold/reward"] for metrics in gains.values()]
    assert rewards == sorted(rewards)
    assert rewards[2] > rewards[0] + 0.5
    assert gains[0.0]["val/gold/kl"] == pytest.approx(0, abs=1e-6)
    assert gains[0.0]["train/loss"] == 0
