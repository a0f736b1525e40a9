"""Optional numbers of a pair's responses: read, packed, and left out where some rows lack it."""

from __future__ import annotations

import pytest

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.rows.formats import convert
from rlhf_lightning.data.rows.problems import RowError
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.tokenize import tokenize
from tests.helpers.rows import Rows
from tests.helpers.tokenizers import llama_like


@pytest.mark.parametrize(
    ("extra", "numbers"),
    [
        ({}, {}),
        ({"win_chosen": 0.75, "win_rejected": "0.25"}, {"win_probability": [0.75, 0.25]}),
        ({"chosen_probs_win": 0.75, "chosen_probs_lose": 0.25}, {"win_probability": [0.75, 0.25]}),
        ({"reference_sample": "rejected"}, {"reference_sample": [0.0, 1.0]}),
        ({"reference_sample": "chosen", "policy_sample": "rejected"},
         {"reference_sample": [1.0, 0.0], "policy_sample": [0.0, 1.0]}),
        ({"policy_sample": None, "win_chosen": None}, {}),
    ],
)  # fmt: skip
def test_numbers_of_a_pair(extra, numbers):
    pair = {"prompt": "p", "chosen": "c", "rejected": "r", **extra}
    assert convert(pair, DataSpec(), kind="preference").numbers == numbers
    for kind in ("comparison", "supervised"):  # nobody else asks for them
        assert convert(pair, DataSpec(), kind=kind).numbers == {}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"win_chosen": 0.75}, "no 'win_rejected'"),
        ({"win_chosen": 75, "win_rejected": 25}, "'win_chosen' must be a probability, from 0 to 1, not float"),
        ({"reference_sample": "second"}, "'drawn' must be 'chosen' or 'rejected', not"),
        ({"policy_sample": True}, "'policy_sample' must be 'chosen' or 'rejected', not bool"),
    ],
)
def test_wrong_numbers_of_a_pair_name_their_column(extra, message):
    spec = DataSpec(columns={"reference_sample": "drawn"})
    pair = {"prompt": "p", "chosen": "c", "rejected": "r", **extra, "drawn": extra.get("reference_sample")}
    with pytest.raises(RowError, match=message):
        convert(pair, spec, kind="preference")


def _numbered(*extra):
    rows = [{"prompt": f"a{at}", "chosen": "hi", "rejected": "b", **more} for at, more in enumerate(extra)]
    result = tokenize(Rows(*rows), llama_like(), DataSpec(cache=False), "preference")
    return result.examples, result.report


def test_numbers_of_pairs_are_packed_response_by_response():
    examples, _ = _numbered(
        {"win_chosen": 0.75, "win_rejected": 0.5, "reference_sample": "chosen"},
        {"win_chosen": 1, "win_rejected": 0, "reference_sample": "rejected"},
    )
    batch = pack(examples, kind="preference")
    assert batch.win_probability.tolist() == [0.75, 0.5, 1.0, 0.0]
    assert batch.reference_sample.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert batch.policy_sample is None
    assert batch.emptied().win_probability.tolist() == []


def test_numbers_that_some_pairs_lack():
    """A row without the column counts as not drawn; win probabilities of half of the rows are not used."""
    examples, report = _numbered(
        {"policy_sample": "rejected", "win_chosen": 0.5, "win_rejected": 0.5, "margin": 2},
        {},
        {"policy_sample": "chosen"},
    )
    assert {name: values.tolist() for name, values in examples.numbers.items()} == {
        "policy_sample": [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    }
    assert examples.margin is None
    assert "2 of 3 rows have no win_probability, so it is not used" in report.notes
    assert "2 of 3 rows have no margin, so margins are not used" in report.notes
    one, report = _numbered({"margin": 2}, {})
    assert one.margin is None
    assert "1 of 2 rows have no margin, so margins are not used" in report.notes
