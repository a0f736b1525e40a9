"""The data module of every method: from sources to the batches of one process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from numpy.typing import NDArray

from rlhf_lightning.data.batches.loader import EpochLoader, ListLoader, evaluation_batches, reference_batches
from rlhf_lightning.data.batches.loader_position import check_limit, steps_taken
from rlhf_lightning.data.batches.loading_options import LoadingOptions
from rlhf_lightning.data.batches.mismatch import Mismatches
from rlhf_lightning.data.batches.plan import Batching, ProcessShare, check_budget
from rlhf_lightning.data.kinds import KINDS, kind_of
from rlhf_lightning.data.rows.problems import DataError, DataReport
from rlhf_lightning.data.sources.base import Source
from rlhf_lightning.data.sources.files import validation_source
from rlhf_lightning.data.sources.row_columns import columns_of_rows
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.summary import summary_of
from rlhf_lightning.data.tokens.encode import trained_template
from rlhf_lightning.data.tokens.examples import Examples, Groups
from rlhf_lightning.data.tokens.optional_numbers import has_input
from rlhf_lightning.data.tokens.prompt_transforms import form_of
from rlhf_lightning.data.tokens.tokenize import split, tokenize
from rlhf_lightning.options import value_object
from rlhf_lightning.renamed import argument, former_arguments
from rlhf_lightning.types import Example, PromptForm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_lightning.chat_templates import TrainedTemplate
    from rlhf_lightning.data.reference.store import ReferenceStore

log = logging.getLogger(__name__)

#: Groups of an evaluation batch are at most this many unless the user says otherwise.
EVALUATION_GROUPS = 16


@former_arguments("rlhf_lightning.data.AlignmentDataModule")
class AlignmentDataModule(L.LightningDataModule):
    """Tokenised, checked and planned data for any method, under ``Trainer``, Fabric or a plain loop.

    With a ``Trainer``, accumulation, rank and number of processes are the trainer's; without one, ``process_share``::

        data = AlignmentDataModule(pairs, batch_size=8, process_share=ProcessShare(accumulate=2, ...))
        data.setup()
        for batch in data.train_dataloader(): ...
    """

    plans_steps: bool  #: whether its rows are cut into steps; methods that draw responses cut those of rollouts instead
    train_examples: Examples | None
    val_examples: Examples | None
    #: Check of a reward that reads columns of validation rows, called with their names; None: no columns are read.
    check_columns: Callable[[Collection[str]], None] | None = None
    drawn_tokens: ClassVar[int] = 0  #: most tokens of a response that the policy draws: none, the data has all of them
    val_columns: Mapping[str, Mapping[str, Any]] = MappingProxyType({})  #: by "file:row", where they are read

    @argument("process_share", earlier="place")
    def __init__(
        self,
        source: Source | Sequence[Example],
        tokenizer: PreTrainedTokenizerBase | None = None,
        kind: str = "preference",
        *,
        validation: Source | Sequence[Example] | float | str | Sequence[str] | None = None,
        spec: DataSpec | None = None,
        batch_size: int | None = 32,
        max_tokens: int | None = None,
        loading: LoadingOptions | Mapping[str, Any] | None = None,
        seed: int = 0,
        process_share: ProcessShare | None = None,
        mismatched: bool = False,
        ptx: Callable[..., AlignmentDataModule] | None = None,
    ) -> None:
        """Check the sizes; nothing is read yet.

        Args:
            source: training rows; or examples that are tokenised already.
            tokenizer: the model's; None for examples.
            kind: of data that the method learns from, a name of ``kinds.KINDS``.
            validation: separate rows, the share of prompts to keep for it, the paths of files or folders, or None.
            spec: options of the conversion of rows to tokens.
            batch_size: groups of an optimiser step over all processes.
            max_tokens: token budget of a micro-batch; when set, it replaces ``batch_size``.
            loading: options of cutting, ordering and packing rows; those of ``LoadingOptions`` by name.
            seed: of the order.
            process_share: part of every step that is this process's, without a trainer.
            mismatched: add every prompt of a step with another row's response (KTO's reference point).
            ptx: other data that on-policy methods mix in: a partial of this class, with ``batch_size`` rows a step.

        Raises:
            ValueError: an impossible size, no such kind, or no validation file at the path.
        """
        super().__init__()
        self.source, self.validation = source, validation_source(validation)
        self.process_share = process_share or ProcessShare()
        self.tokenizer, self.kind, self.spec = tokenizer, kind, spec or DataSpec()
        self.plans_steps = kind_of(kind).has_responses
        size = batch_size if max_tokens is None else None
        cut = value_object(LoadingOptions, loading, LoadingOptions.node)
        self.batching = Batching(
            size, max_tokens, seed=seed, shuffle=cut.shuffle, bucket=cut.window, padded=bool(cut.padded)
        )
        self.eval_batch_size, self.num_workers = cut.eval_batch_size, cut.num_workers
        self.train_examples = self.val_examples = None
        self.reports: dict[str, DataReport] = {}  #: by role: what happened to every row
        self.mismatched, self.ptx = mismatched, ptx
        self._mismatches: dict[int, Mismatches] = {}  # by the identity of the examples
        self._store: ReferenceStore | None = None

    # Reading

    def setup(self, stage: str | None = None) -> None:
        """Tokenise, check and plan the data of a stage, once. No weights are needed, and none should be loaded yet.

        Args:
            stage: ``fit``, ``validate``, ...; None means everything.

        Raises:
            DataError: rows that cannot be used, a row over ``max_tokens``, or fewer groups than a step has parts.
            ValueError: validation rows lack a column that a reward reads.
        """
        validation = self.validation
        if self.train_examples is None and (stage != "validate" or isinstance(validation, int | float)):
            self.train_examples = self._read(self.source, "train")
            if isinstance(validation, int | float):
                # Not drawn by data.seed: runs with other seeds are compared on the same rows.
                identity = KINDS[self.kind].identity
                training, held_out = split(self.train_examples, float(validation), identity=identity)
                self.val_examples = self.train_examples.select(held_out)
                self.train_examples = self.train_examples.select(training)
        if self.val_examples is None and validation is not None and not isinstance(validation, int | float):
            self.val_examples = self._read(validation, "validation")
        self._read_columns()
        for examples in self._parts():
            self._mismatches_of(examples)
            check_budget(self._lengths(examples), self.batching, examples.row)
        if stage in (None, "fit") and self.plans_steps:
            self.train_dataloader()  # an impossible plan is an error here, before weights load

    def _read(self, source: Source | Sequence[Example], role: str) -> Examples:
        """A source as examples of this kind."""
        if isinstance(source, Sequence):
            examples = source if isinstance(source, Examples) else Examples.build(source)
        elif self.tokenizer is None:
            raise ValueError(
                f"the {role} data of {source.name} is text, so the model's tokenizer is needed: pass tokenizer="
            )
        else:
            tokenized = tokenize(source, self.tokenizer, self.spec, self.kind)
            tokenized.report.enforce(self.spec)
            self.reports[role] = tokenized.report
            examples = tokenized.examples
        return _fitting(examples, self.kind, role)

    def trained_template(self) -> TrainedTemplate | None:
        """Chat template of the training rows; None where no row was a conversation, or before they were read."""
        templated = (report := self.reports.get("train")) is not None and report.conversations
        return trained_template(self.tokenizer, self.spec) if templated and self.tokenizer is not None else None

    @property
    def prompt_form(self) -> PromptForm:
        """Properties of the prompts that generation needs."""
        return form_of(self.spec.prompting, self.tokenizer)

    def _read_columns(self) -> None:
        """Columns of the validation rows, where a reward reads some."""
        if self.check_columns is None or self.val_examples is None or self.val_columns:
            return
        source = self.source if isinstance(self.validation, int | float) else self.validation
        if source is not None and not isinstance(source, Sequence):
            self.val_columns = columns_of_rows(source, self.spec, self.kind, self.val_examples.rows())
        for names in {frozenset(row) for row in self.val_columns.values()} or {frozenset[str]()}:
            self.check_columns(names)

    def _parts(self) -> list[Examples]:
        return [part for part in (self.train_examples, self.val_examples) if part is not None]

    def _mismatches_of(self, examples: Examples) -> Mismatches | None:
        """The partners of a data set's rows, chosen once; None where they are not used."""
        if self.mismatched and id(examples) not in self._mismatches:
            role = "training" if examples is self.train_examples else "validation"
            self._mismatches[id(examples)] = Mismatches.draw(examples, role)
        return self._mismatches.get(id(examples))

    def reference_parts(self) -> list[Groups]:
        """Everything of which a loss may need reference log-probs: the rows that were read, and mismatched ones."""
        parts = self._parts()
        return [*parts, *(rows for part in parts if (rows := self._mismatches_of(part)) is not None)]

    def _lengths(self, examples: Examples) -> NDArray[np.int64]:
        return examples.padded_lengths if self.batching.padded else examples.lengths

    def has_input(self, name: str) -> bool:
        """Return whether the data has an input of a loss; True while nothing has been read.

        Training and validation must both have a margin or a win probability (of lists: scores in [0, 1]); only one of
        them needs to have which model drew a response.
        """
        return has_input(self._parts(), name)

    def content(self) -> dict[str, str]:
        """Digests of the data that was read, by its name."""
        parts = {"the training data": self.train_examples, "the validation data": self.val_examples}
        return {name: part.content() for name, part in parts.items() if part is not None}

    def summaries(self) -> list[str]:
        """A few lines for people about the data that was read and its steps."""
        lines = [
            f"{role}: {summary_of(examples, self.kind, self.reports.get(role))}"
            for role, examples in (("train", self.train_examples), ("validation", self.val_examples))
            if examples is not None
        ]
        if self.train_examples is not None and self.plans_steps:
            lines.append(self._steps())
        return lines

    def _steps(self) -> str:
        plan = self.train_dataloader().plan
        micro = f"{plan.micro_batches} micro-batch{'es' if plan.micro_batches > 1 else ''}"
        if self.batching.max_tokens is not None:
            return f"steps: {len(plan)} an epoch, of {micro} of {self.batching.max_tokens} tokens, {plan.fill:.1%} full"
        balance = f", balanced to {plan.fill:.1%}" if plan.micro_batches > 1 else ""
        return f"steps: {len(plan)} an epoch, of {self.batching.batch_size} groups in {micro}{balance}"

    # Loaders

    def train_dataloader(self) -> EpochLoader:
        """This process's training batches.

        Raises:
            ValueError: the data cannot be cut into steps of this size, or accumulation changes over time.
        """
        examples = _need(self.train_examples)
        batching, share = self.batching, self._share()
        trainer: Any = self.trainer
        if trainer is not None:
            if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
                raise ValueError(
                    "GradientAccumulationScheduler changes the number of micro-batches of a step, but the loader plans "
                    "steps ahead; set trainer.accumulate_grad_batches to one number"
                )
            if trainer.overfit_batches:
                batching = replace(batching, shuffle=False)  # the same few batches in every epoch
        loader = EpochLoader(
            examples,
            batching,
            accumulate=share.accumulate,
            rank=share.rank,
            world_size=share.world_size,
            workers=self.num_workers,
            pin_memory=self._pin_memory(),
            store=self._store,
            kind=self.kind,
            mismatches=self._mismatches_of(examples),
            taken=steps_taken(trainer),
        )
        check_limit(trainer, len(loader))  # plans the first epoch, so an impossible plan is an error now
        return loader

    def val_dataloader(self) -> ListLoader | list[ListLoader]:
        """This process's validation batches, in order; an empty list without validation data."""
        if self.validation is None:
            return []
        share = self._share()
        batching = self.batching
        if batching.max_tokens is None or self.eval_batch_size is not None:
            batching = replace(batching, batch_size=self._eval_groups() * share.world_size, max_tokens=None)
        examples = _need(self.val_examples)
        listed = evaluation_batches(examples, batching, rank=share.rank, world_size=share.world_size)
        return self._list_loader(listed, store=self._store, kind=self.kind, mismatches=self._mismatches_of(examples))

    def reference_loader(self, store: ReferenceStore, *, checks: int = 8) -> ListLoader:
        """The rows of training and validation, mismatched ones too, that a store lacks; this process's share.

        A few random rows that it has are added: the writer compares their log-probs with the stored ones. Every process
        has equally many batches, so that a sharded model can score them.

        Args:
            store: the cache.
            checks: stored rows to score again; with 0 the loader is empty when nothing is missing.
        """
        parts = self.reference_parts()
        chosen = self._to_score(store, checks)
        if self.trainer is not None:  # another job may add rows between two processes' looks at the folder
            chosen = self.trainer.strategy.broadcast(chosen)
        share, budget = self._share(), self.batching.max_tokens
        listed = reference_batches(
            list(zip(parts, chosen, strict=True)),
            size=self._eval_groups() if budget is None or self.eval_batch_size is not None else None,
            max_tokens=None if self.eval_batch_size is not None else budget,
            padded=self.batching.padded,
            rank=share.rank,
            world_size=share.world_size,
        )
        return self._list_loader(listed)

    def _to_score(self, store: ReferenceStore, checks: int) -> list[NDArray[np.int64]]:
        """For each data set the groups that the store lacks, and a few that it has."""
        draw = np.random.default_rng()  # another sample in every run; nothing that is trained depends on it
        chosen = []
        for examples in self.reference_parts():
            missing = store.missing(examples)
            stored = draw.permutation(np.setdiff1d(np.arange(len(examples)), missing))[:checks]
            checks -= len(stored)
            chosen.append(np.concatenate([missing, stored]))
        return chosen

    @property
    def reference_store(self) -> ReferenceStore | None:
        """Cached reference log-probs that are attached to every batch from now on; every row must be in it."""
        return self._store

    @reference_store.setter
    def reference_store(self, store: ReferenceStore | None) -> None:
        if store is not None:
            if self.trainer is not None:
                self.trainer.strategy.barrier("reference cache")  # until every process has written its share
            for examples in self.reference_parts():
                missing = store.missing(examples)
                if len(missing):
                    store.log_probs(examples.select(missing[:1]))  # raises, naming the row
        self._store = store

    def _list_loader(self, listed: list[tuple[Groups, NDArray[np.int64]]], **options: Any) -> ListLoader:
        share = self._share()
        return ListLoader(
            listed, workers=self.num_workers, pin_memory=self._pin_memory(), world_size=share.world_size, **options
        )

    def _eval_groups(self) -> int:
        if self.eval_batch_size is not None:
            return self.eval_batch_size
        micro = (self.batching.batch_size or EVALUATION_GROUPS) // self._share().micro_batches
        return min(max(micro, 1), EVALUATION_GROUPS)

    def _share(self) -> ProcessShare:
        if self.trainer is None:
            return self.process_share
        return ProcessShare(self.trainer.accumulate_grad_batches, self.trainer.global_rank, self.trainer.world_size)

    def _pin_memory(self) -> bool:
        return (
            torch.cuda.is_available() and self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        )


def _need(examples: Examples | None) -> Examples:
    if examples is None:
        raise RuntimeError("call setup() first: the data has not been read")
    return examples


def _fitting(examples: Examples, kind: str, role: str) -> Examples:
    """Tokenised examples as data of a kind: only their first responses where the kind has one a prompt.

    Raises:
        DataError: the examples do not fit the kind.
    """
    slots = len(KINDS[kind].slots)
    if not KINDS[kind].has_responses:
        return examples.prompts_alone()
    if slots == 1 and examples.slots > 1 and examples.prompts == 1:
        return examples.first_response()
    if slots > examples.slots:
        raise DataError(
            f"the {role} examples have {examples.slots} response{'s' if examples.slots > 1 else ''} each; {kind} data "
            f"needs {KINDS[kind].noun}"
        )
    if slots and examples.prompts == 1 and (empty := np.flatnonzero((examples.slot_tokens == 0).any(axis=1))).size:
        raise DataError(f"{examples.row(int(empty[0]))}: a response is missing; {kind} data needs all {slots} of a row")
    return examples
