"""Columns of validation rows of data that keep none: read for a reward that reads them, and for nobody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.cli.results import Result
from rlhf_lightning.data import AlignmentDataModule, DataSpec
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.sources.row_columns import columns_of_rows
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rewards import Composite, ExactMatch, FunctionReward, LengthReward, LexiconSentiment
from rlhf_lightning.rewards.base import reads_columns

SPEC = DataSpec(cache=False)
ROWS = [
    {"question": f"What is {n} + {n}?", "chosen": f"It is {2 * n}.", "rejected": "No idea.", "answer": str(2 * n)}
    for n in range(12)
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_rows_are_found_by_their_names(file: Path) -> None:
    spec = DataSpec(cache=False, columns={"prompt": "question"})
    columns = columns_of_rows(Files(str(file)), spec, "preference", [f"{file}:3", f"{file}:12", "elsewhere:1"])
    assert columns == {f"{file}:{n}": {**ROWS[n - 1], "prompt": ROWS[n - 1]["question"]} for n in (3, 12)}


def test_no_more_rows_are_read_than_it_takes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    rows = Files.rows

    def counted(self):
        for row in rows(self):
            read.append(row.number)
            yield row

    monkeypatch.setattr(Files, "rows", counted)
    columns_of_rows(Files(str(file)), SPEC, "preference", [f"{file}:2"])
    assert read == [1, 2]
    assert columns_of_rows(Files(str(file)), SPEC, "preference", []) == {}
    assert read == [1, 2]


def test_a_split_part_has_the_columns_of_its_own_rows(file: Path) -> None:
    """Its rows are a selection: what is at their positions in the part belongs to others."""
    spec = DataSpec(cache=False, columns={"prompt": "question"})
    data = AlignmentDataModule(
        Files(str(file)),
        TinyRandom().tokenizer(),
        validation=0.4,
        spec=spec,
        batch_size=2,
        loading={"eval_batch_size": 2},
    )
    asked: list[frozenset[str]] = []
    data.check_columns = lambda names: asked.append(frozenset(names))
    data.setup()
    assert asked == [frozenset({*ROWS[0], "prompt"})]
    held_out = [row for batch in data.val_dataloader() for row in batch.rows]
    assert 0 < len(held_out) < len(ROWS)
    for row in held_out:
        assert data.val_columns[row]["answer"] == ROWS[int(row.rpartition(":")[2]) - 1]["answer"]
    assert set(data.val_columns) == set(held_out)


def test_nothing_is_read_for_runs_that_read_no_columns(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_lightning.data.module.columns_of_rows", None)
    spec = DataSpec(cache=False, columns={"prompt": "question"})
    data = AlignmentDataModule(Files(str(file)), TinyRandom().tokenizer(), validation=0.4, spec=spec, batch_size=2)
    data.setup()
    assert data.val_columns == {}
    assert data.val_examples is not None
    assert data.val_examples.columns is None


def given(prompt: str, response: str, **columns: str) -> float:
    return 0.0


def optional(prompt: str, response: str, *, answer: str = "") -> float:
    return 0.0


def plain(prompt: str, response: str) -> float:
    return 0.0


def test_which_rewards_read_columns() -> None:
    tokenizer = TinyRandom().tokenizer()
    assert reads_columns(ExactMatch(tokenizer))
    assert reads_columns(LengthReward(column="target"))
    assert not reads_columns(LengthReward(target=3))
    assert not reads_columns(LexiconSentiment(tokenizer))
    assert [reads_columns(FunctionReward(tokenizer, function=f)) for f in (given, optional, plain)] == [
        True,
        True,
        False,
    ]
    terms = {"a": LengthReward(target=3), "b": plain}
    assert not reads_columns(Composite(tokenizer, terms=terms))
    assert reads_columns(Composite(tokenizer, terms={**terms, "c": ExactMatch(tokenizer)}))
    assert not reads_columns(object())


# From the command line


@pytest.fixture
def offline(file: Path) -> list[str]:
    data = ["data=json", f"data.source.path={file}", "data.spec.columns.prompt=question", "data.validation=0.4"]
    few = ["data.batch_size=2", "data.spec.cache=false", "callbacks=[samples]", "callbacks.samples.max_new_tokens=4"]
    return ["model=tiny_random", "trainer=debug", "method=dpo", *data, *few]


def test_samples_of_an_offline_run_are_scored_by_a_column(rlhf, offline: list[str], tmp_path: Path) -> None:
    """The chosen response of each row has its answer as its last number, so the data's own responses are all right."""
    match = ["reward=exact_match", "reward.extract=last_number", "paths.output_dir=out"]
    code, _, err = rlhf("train", *offline, *match)
    assert code == 0, err
    result = Result.read(tmp_path / "out")
    assert result is not None
    assert result.metrics["val/sample/data_reward"] == 1.0
    rows = [json.loads(line) for line in next((tmp_path / "out/samples").glob("*.jsonl")).read_text().splitlines()]
    assert {row["reward"] for row in rows} <= {0.0, 1.0}


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_column_that_validation_rows_lack_is_reported_before_weights_load(
    command: str, rlhf, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_lightning.models.sources.TinyRandom.load", None)
    code, _, err = rlhf(command, *offline, "reward=exact_match", "reward.column=anser", "paths.output_dir=out")
    assert code == 2, err
    assert "reward 'exact_match' needs the column 'anser' of the data" in err
    assert "did you mean 'answer'?" in err


def test_a_reward_that_reads_columns_is_evaluated_on_pairs(rlhf, offline: list[str], tmp_path: Path) -> None:
    """Every chosen response is right and no rejected one is."""
    options = [option for option in offline if not option.startswith(("method=", "callbacks"))]
    match = ["reward=exact_match", "reward.extract=last_number", "paths.output_dir=out"]
    code, _, err = rlhf("evaluate", *options, "method=bradley_terry", *match)
    assert code == 0, err
    result = Result.read(tmp_path / "out")
    assert result is not None
    assert result.metrics["val/reward/accuracy"] == 1.0
    assert result.metrics["val/reward/margin"] == 1.0
