"""A kind of data that nobody knows is one entry of ``KINDS`` and one reader: it is read, checked, packed and listed."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from rlhf_lightning import types
from rlhf_lightning.cli import catalogue
from rlhf_lightning.data.batches.packing import batch_of
from rlhf_lightning.data.inspect import inspect
from rlhf_lightning.data.kinds import KINDS, DataKind, fed_by, kind_of, serves
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.data.rows.kind_readers import READERS
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.spec import COLUMNS, DataSpec
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.types import PackedBatch, RankedBatch
from tests.helpers import tokenizers
from tests.helpers.rows import Rows

ROWS = [{"prompt": f"p{number}", "response": "ab", "score": number / 2} for number in range(6)]
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.fixture
def graded(monkeypatch) -> str:
    """Demonstrations with a grade each; each stays a group of its own, unlike the lists that scores otherwise make."""

    def read(record, fields, spec):
        if not fields.has("score"):
            return record
        return replace(record, kind="graded", numbers={"score": [fields.number("score")]})

    entry = DataKind(
        "graded responses",
        "graded response",
        ("graded",),
        "a demonstration with a column score",
        "RankedBatch",
        mapped="score=grade",
        labels=("grade",),
    )
    monkeypatch.setitem(KINDS, "graded", entry)
    monkeypatch.setitem(READERS, "graded", {"supervised": read})
    return "graded"


def test_a_new_kind_is_read_planned_and_packed(graded):
    data = AlignmentDataModule(
        Rows(*ROWS),
        tokenizers.llama_like(),
        graded,
        spec=DataSpec(cache=False),
        batch_size=3,
        loading={"shuffle": False},
    )
    data.setup()
    batches = list(data.train_dataloader())
    assert {type(batch) for batch in batches} == {RankedBatch}
    assert [batch.score.tolist() for batch in batches] == [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]
    train, steps = data.summaries()
    assert train.startswith("train: 6 graded responses of 6 tokens on average")
    assert steps == "steps: 2 an epoch, of 3 groups in 1 micro-batch"


def test_a_new_kind_is_shown(graded):
    made = tokenize(Rows(*ROWS), tokenizers.llama_like(), DataSpec(cache=False), graded)
    console = Console(file=io.StringIO(), width=100)
    inspect(made.examples, made.report, tokenizers.llama_like(), console)
    shown = console.file.getvalue()
    assert "for graded training" in shown
    assert "score 0 .. 1.25 .. 2.5 (min, median, max)" in shown
    assert "graded  score 2.5  3 tokens" in shown


def test_a_new_kind_is_listed(graded):
    """In the refusal of other rows, in the refusal of a name, and in the table of the methods."""
    with pytest.raises(DataError) as raised:
        tokenize(Rows(PAIR), tokenizers.llama_like(), DataSpec(cache=False), graded)
    assert "this method learns from graded responses, and rows holds pairs" in str(raised.value)
    assert "  graded responses: a demonstration with a column score" in str(raised.value)
    assert "data.spec.columns.score=grade" in str(raised.value)
    with pytest.raises(ValueError, match=r"Did you mean 'graded'\? There are supervised, .*, graded$"):
        kind_of("grade")
    entry = next(entry for entry in catalogue.catalogue() if entry.name == "sft")
    assert catalogue.needs_of(replace(entry, kind=graded)) == "graded responses"


def test_rows_of_a_new_kind_serve_whom_the_entry_says(graded, monkeypatch):
    assert fed_by(graded) == [graded]
    assert graded in fed_by("supervised")
    assert graded in fed_by("prompt")
    assert not serves(graded, "preference")
    monkeypatch.setitem(KINDS, "better", replace(KINDS[graded], feeds=(graded,)))
    assert fed_by(graded) == [graded, "better"]


@pytest.mark.parametrize("name", KINDS)
def test_every_entry_is_whole(name):
    """The names in an entry exist: a batch class, a reader, kinds that exist, slots that exist, nouns."""
    kind = KINDS[name]
    assert issubclass(batch_of(name), PackedBatch)
    assert name in READERS
    assert set(READERS[name]) <= {*KINDS, ""}
    assert set(kind.feeds) <= KINDS.keys() - {name}
    assert all(slot < len(kind.slots) for slot in (*kind.worse, *([kind.identity] if kind.identity else [])))
    assert kind.noun != kind.singular
    assert kind.mapped.partition("=")[0] in COLUMNS
    assert kind.optional in ("", *COLUMNS)
    assert set(batch_of(name).NUMBERS) <= {*kind.labels, "score"}


def test_batches_of_all_kinds_differ():
    classes = {name: batch_of(name) for name in KINDS}
    assert len(set(classes.values())) == len(classes)
    assert all(getattr(types, kind.batch) for kind in KINDS.values())


@pytest.mark.parametrize(("count", "named"), [(0, "pairs"), (1, "pair"), (2, "pairs")])
def test_nouns_follow_the_number(count, named):
    assert KINDS["preference"].named(count) == named


def test_one_pair_is_called_a_pair():
    data = AlignmentDataModule(
        Rows(PAIR), tokenizers.llama_like(), spec=DataSpec(cache=False), batch_size=1, validation=None
    )
    data.setup()
    assert data.summaries()[0].startswith("train: 1 pair of ")
