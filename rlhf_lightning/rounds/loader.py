"""The training loader of on-policy methods: it draws a rollout when it is empty, and has a fixed length.

Lightning asks a loader that has a length for the next batch only after the optimiser step before it, so every rollout
sees the fully updated policy. The state is the same on every process, as process 0's is what Lightning keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rlhf_lightning.data.batches.loader_position import PositionedLoader, check_state
from rlhf_lightning.data.batches.plan import Batching, Plan, ProcessShare, plan_steps
from rlhf_lightning.lessons.base import Lesson, Round
from rlhf_lightning.lessons.tokens import IntArray, exact_totals
from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.rounds.ptx import Demonstrations
from rlhf_lightning.types import PackedBatch, RolloutBatch


class RolloutLoader(PositionedLoader[PackedBatch]):
    """Micro-batches of one process: rollout after rollout, each as often as the method says.

    A rollout has ``minibatches * batch_size`` prompts. An inner epoch deals them to ``minibatches`` optimiser steps of
    ``batch_size`` prompts, each inner epoch in another way, and each step to micro-batches of about as many tokens.

    Args:
        collect: makes the rollout that this loader needs next; a collective call.
        prompts: of the data set.
        batch_size: prompts of an optimiser step, over all processes.
        lesson: determines how a rollout is used, and restores one from a checkpoint.
        process_share: part of every step that is this process's.
        seed: of the minibatches.
        padded: micro-batches are balanced by rows times the longest row.
        group_tokens: most tokens of a prompt with its responses.
        demonstrations: rows that every micro-batch has in addition to its rollout (``RolloutBatch.ptx``).
        taken: returns the optimiser steps that were taken, see ``StepPosition``.
        report: takes the metrics of a rollout when its first step begins, also where a checkpoint holds the rollout.

    Raises:
        ValueError: a rollout has more prompts than the data, or a step fewer than it has micro-batches.
    """

    def __init__(
        self,
        collect: Callable[[RolloutLoader], Round],
        *,
        prompts: int,
        batch_size: int,
        lesson: Lesson,
        process_share: ProcessShare | None = None,
        seed: int = 0,
        padded: bool = False,
        group_tokens: int = 1024,
        demonstrations: Demonstrations | None = None,
        taken: Callable[[], int] | None = None,
        report: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.collect, self.lesson, self.options, self.process_share = (
            collect,
            lesson,
            lesson.options,
            process_share or ProcessShare(),
        )
        super().__init__(self.process_share.accumulate, taken)
        self.report = report
        self.demonstrations = demonstrations
        self.batching = Batching(batch_size, seed=seed, padded=padded)
        self.size = self.options.minibatches * batch_size  #: prompts of a rollout
        if prompts < self.size:
            raise ValueError(
                f"a rollout has {self.options.node}.minibatches={self.options.minibatches} x "
                f"data.batch_size={batch_size} = {self.size} prompts, and the data has {prompts}: lower one of them, "
                "or bring more prompts"
            )
        if batch_size < self.process_share.micro_batches:
            raise ValueError(
                f"data.batch_size={batch_size} prompts a step cannot be split into {self.process_share.micro_batches} "
                "micro-batches (accumulate_grad_batches x devices); raise data.batch_size or lower the others"
            )
        #: most tokens of a micro-batch
        self.most_tokens = -(-batch_size // self.process_share.micro_batches) * group_tokens
        self.rollouts = prompts // self.size  #: of an epoch
        self.number = 0  #: rollouts that were begun
        self.cursor = 0  #: prompts that were taken from the stream
        self.experience: Round | None = None
        self._used_up = 0

    @property
    def rollout_steps(self) -> int:
        """Optimiser steps that a rollout gives."""
        return self.options.inner_epochs * self.options.minibatches

    def __len__(self) -> int:
        """Micro-batches of this process in an epoch."""
        return self.rollouts * self.rollout_steps * self.process_share.accumulate

    def remaining(self) -> Iterator[PackedBatch]:
        """The batches of the epoch from the position on, rollout by rollout."""
        while self.position.handed_out < len(self):
            yield from self._rollout()

    def _rollout(self) -> Iterator[PackedBatch]:
        """The rest of the rollout at hand, or a new one."""
        first = self.position.handed_out % (self.rollout_steps * self.process_share.accumulate)
        experience = self.experience
        if experience is None:
            experience = self.collect(self)
            self._hold(experience)
            self.cursor, self.number = experience.cursor, experience.number + 1
        if first == 0 and self.report is not None:
            self.report(experience.metrics)
        each = self.options.minibatches * self.process_share.accumulate
        for inner in range(first // each, self.options.inner_epochs):
            plan = self.plan_of(experience, inner)
            start = first % each if inner == first // each else 0
            for number in range(start, each):
                self.position.advance()  # before the batch is used: a state taken while it is trained on counts it
                yield self._with_demonstrations(self.micro_batch(experience, plan, number), inner * each + number)
        self.experience = experience = None  # makes room before the next one is drawn

    def _hold(self, experience: Round | None) -> None:
        """Keep a rollout until its last step is taken; its first one is the next."""
        step = self.position.handed_out // self.process_share.accumulate
        self.experience = experience
        self._used_up = (step // self.rollout_steps + 1) * self.rollout_steps  # in steps of the epoch

    def plan_of(self, experience: Round, inner: int) -> Plan:
        """Plan of how an inner epoch deals out the groups; the same on every process."""
        examples = experience.examples
        padded = self.batching.padded
        seed = stream_seed("minibatches", self.batching.seed, experience.number)
        return plan_steps(
            examples.padded_lengths if padded else examples.lengths,
            examples.slot_tokens,
            Batching(self.batching.batch_size, seed=seed, padded=padded),
            steps=self.options.minibatches,
            micro_batches=self.process_share.micro_batches,
            epoch=inner,
        )

    def micro_batch(self, experience: Round, plan: Plan, number: int) -> PackedBatch:
        """This process's ``number``-th micro-batch of an inner epoch."""
        step, part = divmod(number, self.process_share.accumulate)
        groups, whole = self._share(plan, number), plan.groups(step)
        batch = experience.batch(groups, exact_totals(plan, step), whole)
        if part:
            return batch
        shares = [self._share(plan, each) for each in range(number, number + self.process_share.accumulate)]
        return experience.opening(batch, shares, whole)

    def _share(self, plan: Plan, number: int) -> IntArray:
        """Groups of this process's ``number``-th micro-batch of an inner epoch."""
        return plan.micro_batch(number * self.process_share.world_size + self.process_share.rank)

    def _with_demonstrations(self, batch: PackedBatch, number: int) -> PackedBatch:
        """A rollout's ``number``-th micro-batch with its demonstrations."""
        if self.demonstrations is None or not isinstance(batch, RolloutBatch):
            return batch
        step, part = divmod(number, self.process_share.accumulate)
        before = batch.rollout * self.options.inner_epochs * self.options.minibatches
        return replace(batch, ptx=self.demonstrations.batch(before + step, part))

    def begin(self, epoch: int) -> None:
        """Move to the beginning of an epoch, where no rollout is drawn yet."""
        self.experience = None
        super().begin(epoch)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Epoch, finished steps, and the rollout at hand while it is needed; the same on every process."""
        held = self.experience if self.position.steps < self._used_up else None
        return {
            **self.saved_position(),
            "number": self.number,
            "cursor": self.cursor,
            "seed": self.batching.seed,
            "experience": None if held is None else held.state_dict(),
            "lesson": self.lesson.state_dict(),
            "units": self.units(),
        }

    def units(self) -> dict[str, Any]:
        """The options that give a number of steps its meaning, under the names that users know."""
        return {
            "data.batch_size": self.batching.batch_size,
            "data.loading.padded": self.batching.padded,
            f"{self.options.node}.minibatches": self.options.minibatches,
            f"{self.options.node}.inner_epochs": self.options.inner_epochs,
            "rollouts of an epoch": self.rollouts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where the state was taken. The seed is the state's, so a changed option does not change the order.

        Raises:
            ValueError: another version wrote the state; or it is from the middle of an epoch, and an option that
                decides what a step holds has changed since.
        """
        check_state(state, ("epoch", "step", "number", "cursor", "seed", "experience", "accumulate", "units"))
        self.restore_position(state, state["units"])
        if state["seed"] != self.batching.seed:
            self.batching = Batching(self.batching.batch_size, seed=state["seed"], padded=self.batching.padded)
        self.number, self.cursor = state["number"], state["cursor"]
        self.lesson.load_state_dict(state.get("lesson", {}))  # versions without lessons have none
        held = state["experience"]
        self._hold(None if held is None else self.lesson.restore(held))
