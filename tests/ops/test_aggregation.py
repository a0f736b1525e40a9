"""From numbers a token to numbers a response: the specification's table with its hand-worked values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.ops.aggregation import AGGREGATIONS, aggregate, check_aggregation, token_aggregate
from tests.helpers.policy_inputs import Rows, ragged

COINCIDE = [[1.0, 3.0], [1.0, 1.0, 1.0, 5.0]]
SEPARATE = [[1.0, 3.0], [1.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("rows", "how", "expected"),
    [
        # sums 4 and 8, means 2 and 2, 6 tokens
        (COINCIDE, "token_mean", 2.0),
        (COINCIDE, "local_token_mean", 2.0),
        (COINCIDE, "seq_mean_token_mean", 2.0),
        (COINCIDE, "seq_mean_token_sum", 6.0),
        (COINCIDE, "seq_mean_token_sum_norm", 0.75),
        # sums 4 and 4, means 2 and 1
        (SEPARATE, "token_mean", 8 / 6),
        (SEPARATE, "local_token_mean", 8 / 6),
        (SEPARATE, "seq_mean_token_mean", 1.5),
        (SEPARATE, "seq_mean_token_sum", 4.0),
        (SEPARATE, "seq_mean_token_sum_norm", 0.5),
    ],
)
def test_golden(rows: Rows, how: str, expected: float) -> None:
    """A mean of sequence means where a token mean was asked for, or the other way round, fails the second half."""
    values = ragged(rows)
    got = token_aggregate(values.token, values.sequence, values.count, how, 8.0)
    assert got.item() == pytest.approx(expected)


def test_every_aggregation_has_a_golden_value() -> None:
    assert set(AGGREGATIONS) == {
        *("token_mean", "local_token_mean", "seq_mean_token_mean"),
        *("seq_mean_token_sum", "seq_mean_token_sum_norm"),
    }


ROWS = st.lists(st.lists(st.floats(-5, 5), min_size=0, max_size=5), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(ROWS.filter(lambda rows: any(rows)), st.sampled_from(AGGREGATIONS), st.data())
def test_a_step_may_be_cut_anywhere(rows: Rows, how: str, data: st.DataObject) -> None:
    """Numbers of the parts of a step are those of the whole; only the local mean depends on the cut."""
    whole = ragged(rows)
    step_length = len(whole.token) / len(rows)
    expected = aggregate(whole.token, whole.sequence, whole.count, how, step_length=step_length, length=4.0)
    at = data.draw(st.integers(1, len(rows) - 1))
    parts = [ragged(part) for part in (rows[:at], rows[at:])]
    got = torch.cat([aggregate(p.token, p.sequence, p.count, how, step_length=step_length, length=4.0) for p in parts])
    if how == "local_token_mean":
        for part, values in zip(parts, got.split([at, len(rows) - at]), strict=True):
            if len(part.token):
                assert values.mean().item() == pytest.approx(part.token.mean().item(), abs=1e-5)
    else:
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_responses_without_tokens_count_as_responses() -> None:
    values = ragged([[2.0, 4.0], []])
    got = {how: token_aggregate(values.token, values.sequence, values.count, how, 2.0).item() for how in AGGREGATIONS}
    assert got == pytest.approx(
        {
            "token_mean": 3.0,
            "local_token_mean": 3.0,
            "seq_mean_token_mean": 1.5,
            "seq_mean_token_sum": 3.0,
            "seq_mean_token_sum_norm": 1.5,
        }
    )


def test_errors_name_the_options() -> None:
    with pytest.raises(ValueError, match=r"method\.policy_loss\.aggregation='mean'; it can be token_mean"):
        check_aggregation("mean", None)
    for length in (None, 0.0):
        with pytest.raises(ValueError, match=r"method\.policy_loss\.aggregation_length=(None|0\.0) must be positive"):
            check_aggregation("seq_mean_token_sum_norm", length)
    check_aggregation("seq_mean_token_sum_norm", 0.5)  # any positive number will do
