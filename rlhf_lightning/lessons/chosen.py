"""The round of a selector: groups of any kind, and the reference's log-probs of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rlhf_lightning.data.batches.loader_position import check_state
from rlhf_lightning.data.batches.micro_batches import with_mismatched
from rlhf_lightning.data.batches.mismatch import Mismatches, prompt_numbers
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.lessons.tokens import IntArray, TokenRound
from rlhf_lightning.types import PackedBatch, Selected, StepTotals, UnpairedBatch


@dataclass
class SelectedRound(TokenRound):
    """Groups that a selector made of the samples of a round."""

    kind: str  #: of data
    selected: Selected | None = None  #: what the selector gave; not in checkpoints
    #: each prompt with another one's response, which a reference point (KTO's) is estimated from; None: not needed
    mismatched: SelectedRound | None = None
    loss_options: Mapping[str, float] = field(default_factory=dict)  #: of its batches; not in checkpoints

    def with_reference_point(self) -> SelectedRound:
        """The round with rows to estimate a reference point from; unchanged where all groups have the same prompt."""
        examples = self.examples
        if not len(examples) or (prompt_numbers(examples) == 0).all():
            return self
        rows = Mismatches.draw(examples).select(np.arange(len(examples)))
        return replace(self, mismatched=SelectedRound(self.number, self.cursor, rows, self.index, kind="supervised"))

    @property
    def parts(self) -> Sequence[SelectedRound]:
        """The round, and its mismatched rows."""
        return (self,) if self.mismatched is None else (self, self.mismatched)

    def opening(self, batch: PackedBatch, shares: Sequence[IntArray], step: IntArray) -> PackedBatch:
        """The first micro-batch of a step, with the mismatched rows of this process's whole share of it.

        A round whose prompts are all the same has none: the step's estimate is then 0.

        Args:
            batch: of :meth:`batch`.
            shares: groups of each of this process's micro-batches of the step.
            step: all groups of the step.
        """
        if not isinstance(batch, UnpairedBatch):
            return batch
        if self.mismatched is None:
            return with_mismatched(batch, [(batch.stand_in or batch).emptied()])
        count = int(self.mismatched.examples.slot_tokens[step].sum())
        totals = batch.totals._replace(slot_tokens=(max(count, 1),))
        return with_mismatched(batch, [self.mismatched.batch(groups, totals, step) for groups in shares])

    def batch(self, groups: IntArray, totals: StepTotals, step: IntArray | None = None) -> PackedBatch:
        """Some groups as a micro-batch of their kind.

        Args:
            groups: which; none: a group of the step, or of the round where the step has none, stands in.
            totals: denominators of the optimiser step.
            step: all groups of the step.
        """
        chosen = groups if len(groups) else self._stand_in(step)
        reference = self.tokens.get("reference_log_probs")
        packed = pack(
            self.examples.select(chosen),
            kind=self.kind,
            totals=totals,
            indices=self.index[chosen],
            reference_log_probs=None if reference is None else reference[self.token_indices(chosen)].numpy(),
        )
        packed.loss_options = self.loss_options
        return packed if len(groups) else packed.emptied()

    def _stand_in(self, step: IntArray | None) -> IntArray:
        """The shortest group of a step, which reaches no weight that the step does not reach."""
        among = np.arange(len(self.examples)) if step is None or not len(step) else step
        return among[[self.examples.lengths[among].argmin()]]

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        margin = self.examples.margin
        return {
            **super().state_dict(),
            "kind": self.kind,
            "mismatched": None if self.mismatched is None else dict(self.mismatched.tokens),
            "scored": torch.from_numpy(np.array(self.examples.loss_mask)),
            "margin": None if margin is None else torch.from_numpy(np.array(margin)),
            "numbers": {name: torch.from_numpy(np.array(value)) for name, value in self.examples.numbers.items()},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> SelectedRound:
        """Restore a round from :meth:`state_dict`.

        Raises:
            ValueError: another version wrote it.
        """
        check_state(state, ("kind", "margin", "numbers"))
        restored = cls.restored(state)
        margin, numbers = state["margin"], {name: value.numpy() for name, value in state["numbers"].items()}
        fields = {"margin": None if margin is None else margin.numpy(), "numbers": numbers}
        held = cls(**restored | {"examples": replace(restored["examples"], **fields)}, kind=state["kind"])
        if (tokens := state.get("mismatched")) is None:
            return held
        held = held.with_reference_point()
        assert held.mismatched is not None, "a round with numbers of mismatched rows has several prompts"
        held.mismatched.tokens = dict(tokens)
        return held


def joined(rounds: Sequence[SelectedRound]) -> SelectedRound:
    """The groups of several rounds as those of the first one, with the numbers of responses that all of them have.

    No numbers of tokens are kept.
    """
    first, parts = rounds[0], [one.examples for one in rounds]
    starts = np.cumsum([0, *(len(part.tokens) for part in parts[:-1])])
    has_margin = all(part.margin is not None for part in parts)
    shared = [name for name in parts[0].numbers if all(name in part.numbers for part in parts)]
    examples = Examples(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.loss_mask for part in parts]),
        np.concatenate([part.bounds + start for part, start in zip(parts, starts, strict=True)]),
        np.concatenate([part.slot_tokens for part in parts]),
        pa.concat_arrays([part.names for part in parts]),
        np.concatenate([part.margin for part in parts if part.margin is not None]) if has_margin else None,
        np.arange(sum(map(len, parts)), dtype=np.int64),
        numbers={name: np.concatenate([part.numbers[name] for part in parts]) for name in shared},
    )
    index = np.concatenate([one.index for one in rounds])
    return replace(first, examples=examples, index=index, tokens={}, metrics=dict(first.metrics))
