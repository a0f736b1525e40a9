"""On-policy data: prompts in, rollouts of the policy out, under ``Trainer``, Fabric or a plain loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from rlhf_lightning.data.batches.loader import ListLoader
from rlhf_lightning.data.batches.loader_position import check_limit, steps_taken
from rlhf_lightning.data.batches.plan import ProcessShare
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.lessons.base import Lesson, Round
from rlhf_lightning.lessons.credit import CreditLesson
from rlhf_lightning.rewards.base import ColumnReward, Reward
from rlhf_lightning.rollout.base import ReferenceEngine
from rlhf_lightning.rounds.collect import Collector, check_parts
from rlhf_lightning.rounds.live import LivePolicy
from rlhf_lightning.rounds.loader import RolloutLoader
from rlhf_lightning.rounds.processes import Clock
from rlhf_lightning.rounds.produce import Producer
from rlhf_lightning.rounds.prompts import PromptSource, PromptStream
from rlhf_lightning.rounds.ptx import Demonstrations
from rlhf_lightning.rounds.record import Rollouts
from rlhf_lightning.rounds.responses import DataResponses
from rlhf_lightning.rounds.shared import SharedRounds
from rlhf_lightning.rounds.trainer_options import check_trainer
from rlhf_lightning.rounds.validation import ValidationLoader
from rlhf_lightning.types import PreferenceBatch, RolloutOptions

if TYPE_CHECKING:
    from rlhf_lightning.chat_templates import TrainedTemplate
    from rlhf_lightning.data.rows.problems import DataReport
    from rlhf_lightning.data.tokens.examples import Examples
    from rlhf_lightning.rollout.base import RolloutEngine

#: Rows of each part whose columns a reward checks before weights load.
CHECKED_ROWS = 1000


class OnlineData(L.LightningDataModule):
    """Rollouts of the policy that is trained, as batches.

    When the training loader is empty, it draws responses to the next prompts, scores them, has the module assign
    credit, and yields the inner epochs' micro-batches. Every process draws and scores its share; then each has all
    scores and the tokens that are trained on, so every statistic is that of the whole rollout.

    With a ``Trainer`` the module is the trainer's; elsewhere it is given by :meth:`attach`.

    Args:
        prompts: data of kind ``prompt``; its ``batch_size`` counts the prompts of an optimiser step.
        engine: draws the responses.
        reward: scores them; None: every response has the score 0.
        options: how the method uses rollouts.
        folder: of the rollouts' files, and where a killed run finds them; None: none are written.
        identity: everything else that determines samples and scores: a file of another identity is not resumed from.
        lesson: what is learned from rollouts, made of the options and of what gives the module.
        groups: data of the kind that the module learns from, for validation; None: validation is on responses that are
            drawn for held-out prompts.
        responses: of the data's own rows, where they are draws or parts of groups.

    Raises:
        ValueError: the prompts' steps are counted in tokens, or engine or reward cannot do what the options ask for.
    """

    def __init__(
        self,
        prompts: AlignmentDataModule,
        engine: RolloutEngine,
        reward: Reward | None,
        options: RolloutOptions,
        folder: str | Path | None = None,
        identity: str = "",
        *,
        lesson: Callable[[Any, Callable[[], Any]], Lesson] = CreditLesson,
        groups: AlignmentDataModule | None = None,
        responses: DataResponses | None = None,
    ) -> None:
        self.prompts, self.groups, self.responses = prompts, groups, responses
        self._demonstrations: AlignmentDataModule | None = None
        super().__init__()
        if prompts.batching.batch_size is None:
            raise ValueError(
                "data.max_tokens cuts steps by tokens, and responses that are not drawn yet have none: set "
                "data.batch_size (prompts of an optimiser step) and data.max_tokens=null; "
                "trainer.accumulate_grad_batches makes micro-batches smaller"
            )
        check_parts(engine, reward, options)
        self.engine, self.reward, self.options = engine, reward, options
        self.folder, self.identity = None if folder is None else Path(folder), identity
        self._demonstrations = self._others()
        self.prompt_form = prompts.prompt_form
        self.lesson: Lesson = lesson(options, lambda: self.module)
        self.clock = Clock()
        self.shared: SharedRounds | None = None  #: rounds of the start that other runs draw too; None: none
        self.metrics: dict[str, float] = {}  #: of the last rollout
        self._module: Any = None
        self._context: Callable[[], AbstractContextManager[Any]] = nullcontext

    # Interface that the commands need of data

    @property
    def trainer(self) -> Any:
        """The trainer, whose processes and accumulation count."""
        return self.prompts.trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        for data in (self.prompts, self.groups, self._demonstrations):
            if data is not None:
                data.trainer = trainer

    def trained_template(self) -> TrainedTemplate | None:
        """Chat template of the prompts; see :class:`~rlhf_lightning.data.AlignmentDataModule`."""
        return self.prompts.trained_template()

    @property
    def reports(self) -> dict[str, DataReport]:
        """By role: what happened to every row."""
        others = {} if self._demonstrations is None else self._demonstrations.reports
        return self.prompts.reports | {f"ptx {role}": report for role, report in others.items()}

    @property
    def validation(self) -> Any:
        """Source of validation prompts."""
        return self.prompts.validation

    @property
    def train_examples(self) -> Examples | None:
        """Prompts of the training data."""
        return self.prompts.train_examples

    @property
    def val_examples(self) -> Examples | None:
        """Prompts of the validation data; or its groups, where validation is on those."""
        return (self.groups or self.prompts).val_examples

    @property
    def drawn_tokens(self) -> int:
        """Most tokens of a response that is still to be drawn."""
        return self.engine.max_new_tokens

    @property
    def process_share(self) -> ProcessShare:
        """Share of every step that is this process's."""
        trainer = self.trainer
        if trainer is None:
            return self.prompts.process_share
        return ProcessShare(trainer.accumulate_grad_batches, trainer.global_rank, trainer.world_size)

    def attach(self, module: Any, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        """Set the module whose policy is rolled out, where there is no ``Trainer``.

        Args:
            module: with its models loaded.
            context: around forward passes, such as ``fabric.autocast``.
        """
        self._module, self._context = module, context

    @property
    def module(self) -> Any:
        """The module that is trained."""
        module = self._module
        if module is None and self.trainer is not None:
            module = self.trainer.lightning_module
        if module is None:
            raise RuntimeError("no module to roll out: call attach(module) first, or pass the data to Trainer.fit")
        return module

    def has_input(self, name: str) -> bool:
        """Return whether validation's groups have an input of a loss; the selector's check covers those of rounds."""
        return self.groups is None or name in PreferenceBatch.DRAWN_BY or self.groups.has_input(name)

    def setup(self, stage: str | None = None) -> None:
        """Read and check the prompts; no weights are needed.

        Args:
            stage: ``fit``, ``validate``, ...; None means everything.

        Raises:
            ValueError: impossible sizes, or fewer validation prompts than processes.
        """
        self.prompts.setup(stage)
        self._check_columns()
        if self.groups is not None:
            self.groups.setup("validate")
        else:
            self._check_validation()
        if stage in (None, "fit"):
            if self._demonstrations is not None:
                self._demonstrations.setup("fit")
            if self.responses is not None:
                self.responses.check(self.examples)
            size = self.train_dataloader().size  # impossible sizes are an error here, before weights load
            self.lesson.prepare(self.examples, self.stream.take(0, size))

    def _check_validation(self) -> None:
        """Refuse validation prompts that are too few: a process without any has no metrics of the reward."""
        validates = self.trainer is None or self.trainer.limit_val_batches != 0
        if validates and self.val_examples is not None and len(self.val_examples) < self.process_share.world_size:
            raise ValueError(
                f"{len(self.val_examples)} validation prompts cannot give each of {self.process_share.world_size} "
                "processes at least one: use more of them (data.validation), fewer devices, or data.validation=null"
            )

    def _check_columns(self) -> None:
        """Let the reward say which column it lacks, on the first rows of each part, before weights load."""
        if not isinstance(self.reward, ColumnReward):
            return
        for examples in (self.prompts.train_examples, self.prompts.val_examples):
            rows = range(0 if examples is None else min(len(examples), CHECKED_ROWS))
            for names in {frozenset(examples.columns_of(row)) for row in rows if examples is not None}:
                self.reward.check_columns(names)

    def content(self) -> dict[str, str]:
        """Digests of the data that was read, by its name."""
        others = {} if self._demonstrations is None else self._demonstrations.content()
        return self.prompts.content() | {f"{name} of data.ptx": digest for name, digest in others.items()}

    def summaries(self) -> list[str]:
        """Describe the data and the size of a rollout in a few lines."""
        others = self._demonstrations
        lines = self.prompts.summaries()
        lines += [f"mixed in: {line}" for line in ([] if others is None else others.summaries())]
        if self.train_examples is None:
            return lines
        loader, options = self.train_dataloader(), self.options
        samples = f"{options.group_size} samples" if options.group_size > 1 else "1 sample"
        passes = f"{options.inner_epochs} passes" if options.inner_epochs > 1 else "1 pass"
        steps = f"{options.minibatches} steps" if options.minibatches > 1 else "1 step"
        text = (
            f"rollouts: {loader.rollouts} an epoch, each of {loader.size} prompts with {samples} of at most "
            f"{self.engine.max_new_tokens} tokens ({self.engine.name}), for {passes} of {steps}; "
            f"reward: {self.reward_name}"
        )
        return [*lines, text]

    @property
    def reward_name(self) -> str:
        """Name of the reward."""
        return self.collector().reward_name

    def _others(self) -> AlignmentDataModule | None:
        """Demonstrations that are mixed in."""
        if (prompts := self.prompts).ptx is None:
            return None
        tokenizer, seed = prompts.tokenizer, prompts.batching.seed
        return prompts.ptx(tokenizer=tokenizer, kind="supervised", seed=seed, process_share=prompts.process_share)

    # Loaders

    @property
    def stream(self) -> PromptStream:
        """The order of the prompts."""
        batching = self.prompts.batching
        return PromptStream(len(self.examples), batching.seed, batching.shuffle)

    @property
    def examples(self) -> Examples:
        """The prompts of training.

        Raises:
            RuntimeError: they have not been read.
        """
        if self.train_examples is None:
            raise RuntimeError("call setup() first: the prompts have not been read")
        return self.train_examples

    def train_dataloader(self) -> RolloutLoader:
        """This process's training batches.

        Raises:
            ValueError: the trainer repeats batches, makes loaders again or changes its accumulation.
        """
        check_trainer(self.trainer)
        batching, others = self.prompts.batching, self._demonstrations
        assert batching.batch_size is not None
        loader = RolloutLoader(
            self.rollout,
            prompts=len(self.examples),
            batch_size=batching.batch_size,
            lesson=self.lesson,
            process_share=self.process_share,
            seed=batching.seed,
            padded=batching.padded,
            group_tokens=int(self.examples.lengths.max()) + self.options.kept * self.engine.max_new_tokens,
            demonstrations=None if others is None else Demonstrations(others, self.process_share),
            taken=steps_taken(self.trainer),
            report=self.log,
        )
        check_limit(self.trainer, len(loader))
        return loader

    def val_dataloader(self) -> ValidationLoader | ListLoader | list[Any]:
        """This process's validation batches, drawn when they are asked for; an empty list without validation data."""
        if self.groups is not None:
            return self.groups.val_dataloader()
        listed = self.validation_prompts()
        if not isinstance(listed, ListLoader):
            return []
        return ValidationLoader(
            listed.batches.listed, self.collector(True), self.sync, lambda: self.module, self._track_validation
        )

    def validation_prompts(self) -> ListLoader | list[ListLoader]:
        """This process's validation prompts in the batches of :meth:`val_dataloader`; nothing is drawn for them."""
        return (self.groups or self.prompts).val_dataloader()

    # A rollout

    @torch.no_grad()
    def rollout(self, loader: RolloutLoader) -> Round:
        """The loader's next rollout; a collective call.

        Args:
            loader: gives number, position in the stream and plan.
        """
        self.sync()
        collector, started = self.collector(), self.trainer is not None and self.trainer.global_step > 0
        judged = {} if self.held_out is None else collector.judged(self.held_out, self.module)
        produce = Producer(
            PromptSource(self.examples, self.stream, loader.size),
            collector,
            self.lesson,
            LivePolicy(self.module, self.process_share, self.forward_context),
            lambda learned: loader.plan_of(learned, 0),
            self._record(),
            self.identity,
            None if started and self.shared is not None and not self.shared.fixed else self.shared,
        )
        learned = produce(loader.number, loader.cursor)
        learned.metrics |= {f"train/{name}": value for name, value in judged.items()}
        return learned

    @property
    def held_out(self) -> Examples | None:
        """The validation data's pairs that the reward is held against; None: none."""
        count = self.options.judge_pairs
        pairs = self.groups.val_examples if count and self.groups is not None else None
        return None if pairs is None else pairs.select(np.arange(min(count, len(pairs))))

    def _record(self) -> Rollouts | None:
        """The files of the rollouts."""
        if self.folder is None:
            return None
        decode = functools.partial(self.module.tokenizer.decode, skip_special_tokens=False)
        return Rollouts(self.folder, decode, self.options.draws)

    def collector(self, validating: bool = False) -> Collector:
        """Engine and reward, asked together.

        Args:
            validating: for validation; it has a clock of its own.
        """
        clock = Clock() if validating else self.clock
        given = {} if self.responses is None else self.responses
        parts = self.engine, self.reward, self.options, self.process_share, clock, given
        return Collector(*parts, validating=validating, form=self.prompt_form)

    def sync(self) -> None:
        """Give the engine the policy's weights as they are; a collective call."""
        version = 0 if self.trainer is None else int(self.trainer.global_step)
        with self.clock.phase("sync"):
            self.engine.sync(self.module.policy, version)
            if isinstance(self.engine, ReferenceEngine) and self._draws_from_reference():
                self.engine.hold(self.module.placed_reference())

    def _draws_from_reference(self) -> bool:
        return any(draw.source in ("reference", "mixture") for draw in self.options.draws)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Context of a step's forward pass: autocast, where the precision asks for it."""
        trainer = self.trainer
        if trainer is None:
            return self._context()
        return cast("AbstractContextManager[Any]", trainer.precision_plugin.forward_context())

    def log(self, metrics: dict[str, float]) -> None:
        """Keep the numbers of a rollout whose steps begin, and log them where there is a ``Trainer``."""
        self.metrics = metrics
        if self.trainer is not None:
            for name, value in metrics.items():
                self.module.track(name, value)

    def _track_validation(self, name: str, values: Tensor) -> None:
        """Log numbers of a validation pass, where there is a ``Trainer``."""
        if self.trainer is not None and self.trainer.evaluating:
            self.module.track(name, values)

    def teardown(self, stage: str) -> None:
        """Close the engine."""
        if stage == "fit":
            self.engine.close()
