"""Declarations of selectors, and where one may be used."""

from __future__ import annotations

from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor

from rlhf_lightning import selection
from rlhf_lightning.options import Positive
from rlhf_lightning.selection import kinds, least_samples, makes, needs, selector, sources, takes, validate
from rlhf_lightning.types import Selected


def first(prompts: int) -> Selected:
    return Selected(torch.arange(prompts), torch.zeros(prompts, 1, dtype=torch.long))


@selector
@makes("supervised", samples="least", asks={"by": {"score": "score", "length": "length"}})
def example(
    truncated: Tensor,
    score: Tensor | None = None,
    length: Tensor | None = None,
    *,
    by: Literal["score", "length", "nothing"] = "score",
    least: int = 3,
    scale: Positive = 1.0,
) -> Selected:
    return first(len(truncated))


def test_inputs_follow_the_options() -> None:
    assert needs(example) == {"truncated", "score"}
    assert needs(partial(example, by="length")) == {"truncated", "length"}
    assert needs(partial(example, by="nothing")) == {"truncated"}
    assert takes(example) == {"truncated", "score", "length"}


def test_what_the_groups_are() -> None:
    assert kinds(partial(example, scale=2.0)) == {"supervised"}
    assert least_samples(example) == 3
    assert least_samples(partial(example, least=5)) == 5

    @makes("preference")
    def pairs(score: Tensor) -> Selected:
        return first(len(score))

    assert least_samples(pairs) == 2


def test_draws_that_are_told_apart() -> None:
    @makes("preference", sources=(("policy",), ("reference", "mixture")))
    def compares(score: Tensor) -> Selected:
        return first(len(score))

    assert [list(allowed) for allowed in sources(compares)] == [["policy"], ["reference", "mixture"]]
    assert not sources(example)


def test_a_selector_that_declares_nothing() -> None:
    def plain(score: Tensor) -> Selected:
        return first(len(score))

    assert needs(plain) == {"score"}
    assert kinds(plain) is None
    assert least_samples(plain) == 1


def test_what_is_wrong_is_named_before_anything_is_drawn() -> None:
    validate(partial(example, scale=2))
    with pytest.raises(ValueError, match="selector example: scale=0 is not allowed"):
        validate(partial(example, scale=0))
    with pytest.raises(ValueError, match=r"no option 'scalar' \(did you mean 'scale'\?\)"):
        validate(partial(example, scalar=1.0))

    def asks(reward: Tensor) -> Selected:
        return first(len(reward))

    with pytest.raises(ValueError, match=r"selector asks asks for \['reward'\]"):
        needs(asks)


def test_an_earlier_name_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="data_vs_own is now called data_vs_policy"):
        assert selection.data_vs_own is selection.data_vs_policy
    with pytest.raises(AttributeError, match="no attribute 'data_vs_nothing'"):
        selection.data_vs_nothing  # noqa: B018
