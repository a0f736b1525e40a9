"""The example of red-teaming and hardening does what its page says, in small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "red_teaming.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("red_teaming", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rollout(folder: Path, number: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / f"{number:05d}.jsonl").read_text().splitlines()]


def test_the_rows_have_openings_only(example: ModuleType):
    rows = example.rows("train", 400, seed=0)
    assert not any("hope that helps" in row.text.response for row in rows)
    assert 0.4 < sum(row.label for row in rows) / len(rows) < 0.6
    assert rows == example.rows("train", 400, seed=0)


@pytest.mark.slow
def test_attack_and_defence(example: ModuleType, tmp_path: Path):
    """The policy learns the overlooked style; hardening finds it again and loses nothing."""
    [done] = example.main(tmp_path, overrides=["callbacks.gold=null"])
    drawn = tmp_path / "round_1" / "attack" / "rollouts"
    first, last = rollout(drawn, 0), rollout(drawn, 31)
    closing = [sum("hope that helps" in str(row["response"]) for row in rows) / len(rows) for rows in (first, last)]
    assert closing[0] < 0.3
    assert closing[1] > 0.4
    assert done.mined.missed > 100
    assert done.before["original"].recall > 0.95
    assert done.before["mined_1"].recall == 0.0, "what was mined is what it had missed"
    assert done.after["mined_1"].recall > 0.9
    assert done.after["mined_1"].false_positive_rate < 0.1
    assert done.after["original"].recall >= done.before["original"].recall - 0.02
    assert done.after["original"].false_positive_rate <= done.before["original"].false_positive_rate + 0.02
