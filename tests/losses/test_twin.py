"""Every loss equals its plain-loop twin, for any batch and any options."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning import losses
from tests.helpers import reference_losses
from tests.helpers.loss_inputs import PREFERENCE, SUPERVISED, ragged, run
from tests.helpers.loss_strategies import OPTIONS, REDUCTION, batches


@pytest.mark.parametrize("name", PREFERENCE)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), data=st.data())
def test_equals_plain_loop(name: str, batch: reference_losses.Numbers, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    expected = getattr(reference_losses, name)(batch, **options)
    # in float64 (lengths are float32), so that only a wrong formula can differ by this much
    assert run(name, batch, **options).loss.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", SUPERVISED)
@settings(max_examples=30, deadline=None)
@given(batch=batches(), reduction=REDUCTION, mean_length=st.none() | st.floats(1, 9))
def test_supervised_equals_plain_loop(
    name: str, batch: reference_losses.Numbers, reduction: str, mean_length: float | None
) -> None:
    rows = batch.policy_chosen
    expected = getattr(reference_losses, name)(rows, reduction, mean_length)
    loss = getattr(losses, name)(ragged(rows, mean_length=mean_length), reduction=reduction)
    assert loss.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", PREFERENCE)
def test_every_option_is_drawn(name: str) -> None:
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(OPTIONS[name])
