"""The policy that is trained, as a round sees it: its weights' digest, and its forward pass without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_lightning.data.batches.plan import Plan, ProcessShare
from rlhf_lightning.lessons.base import Round
from rlhf_lightning.lessons.tokens import IntArray, exact_totals
from rlhf_lightning.models.fingerprint import reference_fingerprint
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.roles.reference import FrozenCopy
from rlhf_lightning.rounds.processes import gathered
from rlhf_lightning.rounds.record import checksum
from rlhf_lightning.types import PackedBatch, Trained


@dataclass(frozen=True)
class LivePolicy:
    """A module whose policy draws while it is trained.

    Attributes:
        module: with its models loaded.
        process_share: part of every step that is this process's.
        context: context of a step's forward pass: autocast, where the precision asks for it.
    """

    module: Trained
    process_share: ProcessShare
    context: Callable[[], AbstractContextManager[Any]]

    def digest(self) -> str:
        """Digest of the weights that are trained; a collective call where they are sharded."""
        parts: Iterator[Any] = self.module.modules()
        for part in parts:
            if hasattr(part, "reshard"):  # FSDP2: a forward pass without gradients leaves weights gathered
                part.reshard()
        return checksum(self.module.trained_parameters(), _sum_over_processes)

    def fingerprint(self) -> str:
        """Fingerprint of all that the policy computes; a collective call where it is sharded."""
        return reference_fingerprint(self.module.policy)

    def start_fingerprint(self) -> str:
        """Fingerprint of the policy at the run's start, which is the reference; a collective call where it is sharded.

        The same as :meth:`fingerprint` before the first step.
        """
        reference = self.module.placed_reference()
        if isinstance(reference, FrozenCopy):
            return reference_fingerprint(reference.actor)
        return reference_fingerprint(self.module.policy, adapter=False)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Compute as a step does, without gradients and without dropout."""
        module: Any = self.module
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(module))
            stack.enter_context(self.context())
            yield

    def scores(
        self, learned: Round, plan: Plan, compute: Callable[[PackedBatch], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Numbers of every token of a round by name, the same on every process; a collective call.

        They are computed on the micro-batches of the first inner epoch, so the forward passes of the first steps repeat
        them, and the first ratios are exactly 1.

        Args:
            learned: the round.
            plan: of its first inner epoch.
            compute: numbers of a batch's response tokens, by name.
        """
        share, local_parts = self.process_share, dict[str, list[tuple[IntArray, Tensor]]]()
        with self.forward():
            for number in range(share.rank, len(plan.tokens), share.world_size):
                groups = plan.micro_batch(number)
                batch = learned.batch(groups, exact_totals(plan, number // share.micro_batches))
                for name, values in compute((batch.stand_in or batch).to(self.module.device)).items():
                    if len(groups):
                        local_parts.setdefault(name, []).append((groups, values.float().cpu()))
        whole: dict[str, list[tuple[IntArray, Tensor]]] = {}
        for parts_of_process in gathered(local_parts):
            for name, parts in parts_of_process.items():
                whole.setdefault(name, []).extend(parts)
        return learned.scatter(whole)


def _sum_over_processes(values: Any) -> Any:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values
