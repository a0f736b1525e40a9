"""Names of an earlier version: arguments of constructors in Python, with a warning."""

from __future__ import annotations

import inspect
import warnings

import pytest

from rlhf_lightning.cli.targets import locate
from rlhf_lightning.data import DataSpec
from rlhf_lightning.methods import KLPenalty
from rlhf_lightning.renamed import ARGUMENTS
from rlhf_lightning.rollout import ChatClient


def test_a_renamed_argument():
    with pytest.warns(FutureWarning, match=r"KLPenalty\(place=\.\.\.\) is now apply_to; the old name counts in this"):
        former = KLPenalty(place="loss")
    assert former.apply_to == KLPenalty(apply_to="loss").apply_to == "loss"
    with pytest.warns(FutureWarning, match="context_position"):
        assert DataSpec(context_place="behind") == DataSpec(context_position="behind")


def test_an_argument_that_is_part_of_a_value_object():
    with pytest.warns(FutureWarning, match=r"is now requests\.concurrency"):
        former = ChatClient("http://localhost:1", concurrency=3, requests={"timeout": 7.0})
    present = ChatClient("http://localhost:1", requests={"concurrency": 3, "timeout": 7.0})
    assert (former.concurrency, former.endpoint) == (present.concurrency, present.endpoint) == (3, present.endpoint)


def test_both_names_are_refused():
    with pytest.warns(FutureWarning), pytest.raises(TypeError, match="former name of apply_to, and both are given"):
        KLPenalty(place="loss", apply_to="reward")
    with pytest.warns(FutureWarning), pytest.raises(TypeError, match="now part of requests, which is given too"):
        ChatClient("http://localhost:1", concurrency=3, requests={"concurrency": 4})


def test_present_names_warn_of_nothing():
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        KLPenalty(apply_to="loss")
    assert raised == []


@pytest.mark.parametrize("target", ARGUMENTS)
def test_every_class_of_the_table_takes_them(target: str):
    """Its signature, which schemas and completion read, has the present names alone."""
    cls = locate(target)
    with pytest.warns(FutureWarning), pytest.raises(TypeError):
        cls(**dict.fromkeys(ARGUMENTS[target], 1), no_argument=1)
    assert not ARGUMENTS[target].keys() & inspect.signature(cls).parameters.keys()
