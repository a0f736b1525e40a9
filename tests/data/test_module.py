"""The data module: from files to batches with and without a trainer, checks before weights, the reference cache."""

from __future__ import annotations

import json
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from rlhf_lightning import data as package
from rlhf_lightning.data.batches.plan import ProcessShare
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.data.reference.store import ReferenceCacheError, ReferenceStore, ReferenceWriter
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.types import (
    Example,
    PackedBatch,
    PreferenceBatch,
    Ragged,
    RankedBatch,
    SupervisedBatch,
    UnpairedBatch,
)
from tests.helpers.rows import Rows
from tests.helpers.tokenizers import qwen_like


def test_earlier_names_warn() -> None:
    share = ProcessShare(accumulate=2)
    with pytest.warns(DeprecationWarning, match="the argument place is now called process_share"):
        assert AlignmentDataModule(pairs(3), place=share).process_share is share  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="Place is now called ProcessShare"):
        assert package.Place is ProcessShare


def pairs(count: int = 30, seed: int = 0, margin: float | None = None) -> list[Example]:
    """Pairs of random tokens."""
    rng = np.random.default_rng(seed)
    return [
        Example(*(rng.integers(0, 50, rng.integers(2, 9)).tolist(),), [rng.integers(0, 50, n).tolist() for n in (3, 5)],
                row=f"pairs.jsonl:{i + 1}", margin=margin)
        for i in range(count)
    ]  # fmt: skip


def indices(batches: Any) -> list[int]:
    """All groups, in order."""
    return list(chain(*(batch.index.tolist() for batch in batches)))


def trainer(**options: Any) -> L.Trainer:
    """A quiet trainer."""
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    return L.Trainer(accelerator="cpu", **quiet, **options)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A JSONL file of twelve pairs."""
    path = tmp_path / "pairs.jsonl"
    made = [{"prompt": f"Question {i}?", "chosen": f"Good {i}.", "rejected": f"Bad bad {i}."} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


# From files


def test_files_become_batches_of_the_kind_that_the_method_wants(rows: Path) -> None:
    spec = DataSpec(cache=False)
    data = AlignmentDataModule(Files(str(rows)), qwen_like(), "preference", spec=spec, batch_size=5, validation=0.25)
    data.setup()
    batches = list(data.train_dataloader())
    assert all(type(batch) is PreferenceBatch for batch in batches)
    held_out = list(chain(*(batch.rows for batch in data.val_dataloader())))
    trained = list(chain(*(batch.rows for batch in batches)))
    assert sorted(held_out + trained) == sorted(f"{rows}:{i}" for i in range(1, 13))
    assert held_out
    assert data.reports["train"].kept == 12
    assert data.summaries()[0].startswith(f"train: {len(trained)} pairs of ")
    demonstrations = AlignmentDataModule(Files(str(rows)), qwen_like(), "supervised", spec=spec, batch_size=5)
    demonstrations.setup()
    assert all(type(batch) is SupervisedBatch for batch in demonstrations.train_dataloader())


def test_every_kind_has_its_batches_and_is_called_by_its_name(rows: Path, tmp_path: Path) -> None:
    spec = DataSpec(cache=False)
    responses = AlignmentDataModule(Files(str(rows)), qwen_like(), "unpaired", spec=spec, batch_size=8, validation=0.3)
    responses.setup()
    batches = [*responses.train_dataloader(), *responses.val_dataloader()]
    assert {type(batch) for batch in batches} == {UnpairedBatch}
    assert sum(len(batch) for batch in batches) == 24
    assert "labelled responses (50% desirable) of" in responses.summaries()[0]
    assert "12 of 12 rows kept as 24 labelled responses" in responses.summaries()[0]
    lists = tmp_path / "lists.jsonl"
    made = [
        {"prompt": f"Q{i}", "responses": ["a", "b", "c"][: 1 + i % 3], "ranks": [1, 2, 3][: 1 + i % 3]}
        for i in range(6)
    ]
    lists.write_text("".join(json.dumps(row) + "\n" for row in made))
    ranked = AlignmentDataModule(Files(str(lists)), qwen_like(), "ranked", spec=spec, batch_size=6)
    ranked.setup()
    (batch,) = ranked.train_dataloader()
    assert (type(batch), batch.slots, int(batch.present.sum())) == (RankedBatch, 3, 12)
    assert "6 ranked lists of 1 to 3 responses of" in ranked.summaries()[0]


def test_tokenised_examples_must_be_of_the_kind() -> None:
    one_missing = [*pairs(3), Example([1], [[2], []], row="pairs.jsonl:4")]
    with pytest.raises(DataError, match=r"pairs\.jsonl:4: a response is missing; preference data needs all 2"):
        AlignmentDataModule(one_missing).setup()
    with pytest.raises(DataError, match="have 2 responses each; paraphrase data needs paraphrased instructions"):
        AlignmentDataModule(pairs(), kind="paraphrase").setup()


def test_bad_rows_stop_the_run_before_weights(rows: Path) -> None:
    with rows.open("a") as file:
        file.write('{"prompt": "x", "chosen": "", "rejected": "y"}\n')
    data = AlignmentDataModule(Files(str(rows)), qwen_like(), spec=DataSpec(cache=False))
    with pytest.raises(DataError, match=r"pairs\.jsonl:13: empty response"):
        data.setup("fit")


def test_three_rows_for_four_micro_batches() -> None:
    """One of them is empty: it has no rows, those of the step are known, and a row stands in."""
    shares = [AlignmentDataModule(pairs(3), process_share=ProcessShare(2, rank, world_size=2)) for rank in range(2)]
    for share in shares:
        share.setup("fit")
    batches = [batch for share in shares for batch in share.train_dataloader()]
    assert sorted(len(batch) for batch in batches) == [0, 1, 1, 1]
    assert {batch.totals.groups for batch in batches} == {3}
    (empty,) = [batch for batch in batches if not len(batch)]
    assert (empty.rows, len(empty.ids), empty.slots) == ([], 0, 2)
    assert len(empty.stand_in.ids) == min(len(batch.ids) for batch in batches if len(batch))
    assert len(empty.to("meta").stand_in) == 1


def test_fewer_validation_rows_than_processes() -> None:
    """Equally many batches on each, as validation gathers sharded weights; one is empty and counts for nothing."""
    shares = [
        AlignmentDataModule(pairs(4), validation=pairs(1), process_share=ProcessShare(1, rank, 2)) for rank in range(2)
    ]
    for share in shares:
        share.setup("fit")
    batches = [list(share.val_dataloader()) for share in shares]
    assert [[len(batch) for batch in listed] for listed in batches] == [[1], [0]]
    assert batches[1][0].stand_in is not None


def test_a_row_over_the_budget_and_data_of_another_kind_stop_the_run() -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl:\d+ \(\d+ tokens\)"):
        AlignmentDataModule(pairs(), max_tokens=12).setup()
    with pytest.raises(DataError, match=r"pairs\.jsonl:1 \(20 tokens\)"):
        AlignmentDataModule(
            pairs(), validation=[Example([1] * 8, [[1], [2] * 11], row="pairs.jsonl:1")], max_tokens=19
        ).setup()
    with pytest.raises(DataError, match="preference data needs pairs"):
        AlignmentDataModule(Examples.build(pairs()).first_response(), kind="preference").setup()
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        AlignmentDataModule(pairs()).train_dataloader()
    with pytest.raises(ValueError, match=r"data\.loading\.eval_batch_size=0"):
        AlignmentDataModule(pairs(), loading={"eval_batch_size": 0})


# Batches


def test_pairs_for_a_supervised_method_keep_the_chosen_response() -> None:
    data = AlignmentDataModule(pairs(), kind="supervised", batch_size=30, loading={"shuffle": False})
    data.setup()
    (batch,) = data.train_dataloader()
    assert type(batch) is SupervisedBatch
    assert batch.totals.slot_tokens == (90,)  # chosen responses have 3 tokens, rejected ones 5


def test_max_tokens_takes_the_place_of_batch_size() -> None:
    data = AlignmentDataModule(pairs(), max_tokens=60, process_share=ProcessShare(accumulate=2))
    data.setup()
    batches = list(data.train_dataloader())
    assert sorted(indices(batches)) == list(range(30))
    assert max(len(batch.ids) for batch in batches) <= 60
    assert "of 2 micro-batches of 60 tokens" in data.summaries()[-1]


def test_a_seed_changes_the_order_and_not_the_split() -> None:
    one, same, other = (AlignmentDataModule(pairs(), validation=0.3, batch_size=4, seed=seed) for seed in (0, 0, 1))
    for data in (one, same, other):
        data.setup()
    orders = [indices(data.train_dataloader()) for data in (one, same, other)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_setup_reads_once_and_only_what_the_stage_needs() -> None:
    class Counted(list):
        reads = 0

        def __iter__(self):
            type(self).reads += 1
            return super().__iter__()

    data = AlignmentDataModule(Counted(pairs()), validation=pairs(5, seed=1))
    data.setup("validate")
    assert Counted.reads == 0
    assert indices(data.val_dataloader()) == [0, 1, 2, 3, 4]
    data.setup("fit")
    data.setup("fit")
    assert Counted.reads == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_change_nothing(workers: int) -> None:
    data = AlignmentDataModule(pairs(), batch_size=4, loading={"num_workers": workers}, validation=pairs(5, seed=1))
    data.setup()
    reference = AlignmentDataModule(pairs(), batch_size=4)
    reference.setup()
    assert indices(data.train_dataloader()) == indices(reference.train_dataloader())
    assert indices(data.val_dataloader()) == list(range(5))


# With Lightning


class Words(L.LightningModule):
    """Scores words; its prediction is a log-prob for every scored token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = torch.nn.Embedding(50, 1)
        self.seen: list[int] = []
        self.validated: list[int] = []
        self.reference: list[torch.Tensor | None] = []
        self.writer: ReferenceWriter | None = None

    def forward(self, batch: PackedBatch) -> Ragged:
        return batch.ragged(-self.score(batch.ids[batch.target]).squeeze(-1).abs())

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> torch.Tensor:
        self.seen += batch.index.tolist()
        self.reference.append(batch.reference_log_probs)
        return self(batch).sum().sum() / batch.totals.groups * batch.totals.micro_batches

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        self.validated += batch.index.tolist()

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> Ragged:
        return self(batch)

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert self.writer is not None
        self.writer.put(batch, outputs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def run(function: str, *args: Any, **options: Any) -> None:
    """A trainer's entry point without the advice on workers and logging intervals."""
    fit_options = {key: options.pop(key) for key in ("datamodule", "return_predictions") if key in options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(trainer(**options), function)(*args, **fit_options)


def test_the_trainer_decides_how_a_step_is_cut() -> None:
    data = AlignmentDataModule(pairs(), batch_size=6, validation=pairs(5, seed=1))
    module = Words()
    run("fit", module, datamodule=data, max_epochs=2, accumulate_grad_batches=3, num_sanity_val_steps=0)
    assert data.trainer is not None
    assert data.trainer.global_step == 10  # 30 groups, 6 a step, 2 epochs
    assert sorted(module.seen[:30]) == sorted(module.seen[30:]) == list(range(30))
    assert module.seen[:30] != module.seen[30:]
    assert module.validated == list(range(5)) * 2


def test_without_validation_lightning_skips_it() -> None:
    module = Words()
    run("fit", module, datamodule=AlignmentDataModule(pairs(), batch_size=10), max_epochs=1)
    assert len(module.seen) == 30
    assert not module.validated


def test_overfitting_repeats_the_same_batches() -> None:
    module = Words()
    run("fit", module, datamodule=AlignmentDataModule(pairs(), batch_size=5), max_epochs=3, overfit_batches=2)
    assert module.seen == list(range(10)) * 3


def test_a_schedule_of_accumulation_is_refused() -> None:
    schedule = GradientAccumulationScheduler({0: 1, 1: 2})
    with pytest.raises(ValueError, match="GradientAccumulationScheduler"):
        run("fit", Words(), datamodule=AlignmentDataModule(pairs()), max_epochs=1, callbacks=[schedule])


def test_the_reference_cache_is_filled_once_and_attached(tmp_path: Path) -> None:
    data = AlignmentDataModule(pairs(), batch_size=6, validation=pairs(7, seed=1))
    data.setup()
    store = ReferenceStore(tmp_path, "model")
    with pytest.raises(ReferenceCacheError, match=r"pairs\.jsonl:1 has no reference log-probs"):
        data.reference_store = store
    module = Words()
    loader = data.reference_loader(store)
    tokens = [len(batch.ids) for batch in loader]
    assert tokens[0] > tokens[-1]  # longest first
    with ReferenceWriter(store) as module.writer:
        run("predict", module, loader, return_predictions=False)
    assert len(data.reference_loader(store, checks=0)) == 0
    again = data.reference_loader(store, checks=5)
    assert sum(len(batch) for batch in again) == 5
    with ReferenceWriter(store) as module.writer:  # the same model: nothing to write, nothing to complain about
        run("predict", module, again, return_predictions=False)
    assert len(store) == 2 * 37
    with torch.no_grad():
        other = Words()
        other.score.weight.mul_(1.1)
    with (
        pytest.raises(ReferenceCacheError, match="differ from the model's by"),
        ReferenceWriter(store) as other.writer,
    ):
        run("predict", other, again, return_predictions=False)
    data.reference_store = store
    run("fit", module, datamodule=data, max_epochs=1, num_sanity_val_steps=0)
    assert len(module.seen) == 30
    for batch in chain(data.train_dataloader(), data.val_dataloader()):
        with torch.no_grad():
            assert torch.equal(batch.reference_log_probs, module(batch).token)
    assert store.verify(data.train_examples, module) == 0.0

    half = AlignmentDataModule([*pairs(), *pairs(3, seed=9)], max_tokens=64)  # another run: three rows are new
    half.setup()
    assert sorted(indices(half.reference_loader(store, checks=0))) == [30, 31, 32]
    assert len(set(indices(half.reference_loader(store, checks=4)))) == 7


# Without Lightning


def test_a_plain_loop_on_two_processes_trains_on_the_steps_of_one() -> None:
    def weights(shares: list[ProcessShare]) -> torch.Tensor:
        datas = [AlignmentDataModule(pairs(), batch_size=8, process_share=share) for share in shares]
        for data in datas:
            data.setup()
        torch.manual_seed(0)
        score = torch.nn.Embedding(50, 1, dtype=torch.float64)
        optimizer = torch.optim.AdamW(score.parameters(), lr=0.1)
        for _ in range(2):
            ranks = zip(*(data.train_dataloader() for data in datas), strict=True)
            for number, together in enumerate(ranks, start=1):
                for batch in together:  # what gradient averaging over processes does
                    pair = batch.pair(batch.ragged(score(batch.ids[batch.target]).squeeze(-1)))
                    loss = torch.nn.functional.softplus(pair.rejected.sum() - pair.chosen.sum()).sum()
                    loss = loss / batch.totals.groups * batch.totals.micro_batches
                    (loss / len(shares) / shares[0].accumulate).backward()
                if number % shares[0].accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        return score.weight.detach()

    one = weights([ProcessShare()])
    torch.testing.assert_close(weights([ProcessShare(accumulate=4)]), one, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights([ProcessShare(2, rank, 2) for rank in range(2)]), one, rtol=1e-12, atol=1e-12)


def test_validation_may_be_the_path_of_files(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": "b", "rejected": "c"} for i in range(4)]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in (str(tmp_path / "val.jsonl"), [str(tmp_path / "val.jsonl")], str(tmp_path)):
        data = AlignmentDataModule(Rows(*rows), qwen_like(), validation=path, spec=DataSpec(cache=False), batch_size=2)
        data.setup()
        assert data.val_examples is not None
        assert len(data.val_examples) == 4
    with pytest.raises(DataError, match=r"(?s)data\.validation=nowhere\.jsonl: no file to read.*null: no validation"):
        AlignmentDataModule(Rows(*rows), qwen_like(), validation="nowhere.jsonl")
