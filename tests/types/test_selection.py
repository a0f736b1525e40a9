"""Rules for the groups of a selector: every broken one is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from rlhf_lightning.types import DATA, NONE, Selected

PAIRS: dict[str, Any] = {"prompt": torch.tensor([0, 0, 2]), "slots": torch.tensor([[0, 1], [DATA, 1], [NONE, 0]])}


def test_what_is_allowed() -> None:
    margin, label = torch.zeros(3), torch.zeros(3, 2)
    selected = Selected(**PAIRS, numbers={"margin": margin, "desirable": label}, metrics={"tie_rate": 0.5})
    selected.check(prompts=3, samples=2)
    assert len(selected) == 3
    nothing = Selected(torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, dtype=torch.long))
    nothing.check(prompts=0, samples=0)
    assert len(nothing) == 0
    twice = Selected(torch.tensor([0]), torch.tensor([[0, NONE, NONE]]))  # NONE is no response
    assert len(twice) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": torch.tensor([0, 2, 1])}, "in the order of their prompts"),
        ({"prompt": torch.tensor([-1, 0, 1])}, "from 0"),
        ({"slots": torch.tensor([[0, 1], [0, -3], [0, 1]])}, "gave the sample -3"),
        ({"slots": torch.tensor([[0, 1], [1, 1], [0, 1]])}, "one response into two slots"),
        ({"slots": torch.tensor([[0, 1], [DATA, DATA], [0, 1]])}, "one response into two slots"),
        ({"slots": torch.tensor([[0, 1], [NONE, NONE], [0, 1]])}, "without a response"),
        ({"numbers": {"margin": torch.zeros(2)}}, r"'margin' as \(2,\) of torch.float32"),
        ({"numbers": {"margin": torch.zeros(3, dtype=torch.float64)}}, "of torch.float64"),
        ({"numbers": {"margin": torch.tensor([0, math.nan, 0])}}, "gave nan for 'margin'"),
        ({"metrics": {"fine": 0.0, "tie_rate": math.nan}}, r"counted \['tie_rate'\]"),
        ({"metrics": {"tie_rate": math.inf}}, r"counted \['tie_rate'\]"),
    ],
)
def test_a_broken_rule_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Selected(**{**PAIRS, **changed})


@pytest.mark.parametrize("changed", [{"prompt": torch.tensor([0, 1])}, {"slots": torch.tensor([0, 1, 2])}])
def test_shapes_are_checked(changed: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeCheckError), match="slots"):  # checked types come first where they are on
        Selected(**{**PAIRS, **changed})


def test_groups_are_of_the_round() -> None:
    selected = Selected(**PAIRS)
    with pytest.raises(ValueError, match="the prompt 2 of a round with 2, from 0"):
        selected.check(prompts=2, samples=2)
    with pytest.raises(ValueError, match="the sample 1 of a round with 1, from 0"):
        selected.check(prompts=3, samples=1)
