"""Hand-worked groups and metrics of every selector."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import rlhf_lightning.selection as selection
from tests.helpers import reference_selection
from tests.helpers.selection_inputs import OPTIONS, groups, run
from tests.selection.golden_inputs import FIVE, Golden
from tests.selection.golden_rows import ROWS

#: Every public function that is declared as a selector.
NAMES = sorted(name for name in selection.__all__ if getattr(getattr(selection, name), "declares", "") == "selector")


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_groups(row: Golden, dtype: torch.dtype) -> None:
    selected = run(row.selector, row.samples, dtype, **row.options)
    if row.expected is not None:
        given = groups(selected)
        assert [group[:2] for group in given] == [group[:2] for group in row.expected]
        for (_, _, numbers), (_, _, expected) in zip(given, row.expected, strict=True):
            assert numbers.keys() == expected.keys()
            for name, value in expected.items():
                assert numbers[name] == pytest.approx(value, abs=1e-5)
    for name, value in row.metrics.items():
        assert selected.metrics[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("name", NAMES)
def test_every_selector_is_complete(name: str) -> None:
    """Golden row, twin, generated options, and a docstring with equation, source, defaults and every argument."""
    assert name in {row.selector for row in ROWS}
    assert hasattr(reference_selection, name)
    assert name in OPTIONS
    function = getattr(selection, name)
    text = inspect.getdoc(function) or ""
    assert all(part in text for part in (".. math::", "Source: ", "Defaults: ", "Differences: ", "Args:"))
    assert all(f"    {parameter}: " in text for parameter in inspect.signature(function).parameters)
    assert selection.kinds(function), "@makes says which kinds of data its groups are"
    assert name in (selection.__doc__ or "")


def test_targets_of_soft_preference_optimisation() -> None:
    """(P - 1/2) / beta at beta .001: +-309.289 nats, and the loss of two log-ratios that are 0."""
    selected = run("win_probability", FIVE, judge="scores")
    target = (selected.numbers["win_probability"].double() - 0.5) / 0.001
    assert target[0].tolist() == pytest.approx([309.289, -309.289], abs=1e-3)
    assert float(target.square().sum()) / 2 == pytest.approx(95_659.51, abs=0.5)  # float32 targets


def test_a_round_without_prompts() -> None:
    empty = ROWS[0].samples.first(0)
    for name in NAMES:
        options = {"penalty": 1.0} if name == "length_penalised" else {}
        selected = run(name, empty, **({"judge": "scores"} if name in ("win_probability", "win_rates") else options))
        assert len(selected) == 0
        assert all(math.isfinite(value) for value in selected.metrics.values())


def test_what_a_judge_must_give() -> None:
    with pytest.raises(ValueError, match="judge=matrix needs a matrix of pairwise preferences"):
        selection.win_probability(torch.zeros(1, 2, dtype=torch.bool), None, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="judge=scores needs scores"):
        selection.win_probability(torch.zeros(1, 2, dtype=torch.bool), torch.full((1, 2, 2), 0.5), judge="scores")
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        selection.win_probability(torch.zeros(1, 2, dtype=torch.bool), torch.tensor([[[0.5, 2.0], [-1.0, 0.5]]]))
