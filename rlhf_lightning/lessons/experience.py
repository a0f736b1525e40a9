"""The round of credit assignment: responses on every process alike, and numbers for each of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_lightning.data.examples import Examples
from rlhf_lightning.data.packing import pack
from rlhf_lightning.data.plan import Plan
from rlhf_lightning.data.position import check_state
from rlhf_lightning.types import PackedBatch, Ragged, RolloutBatch, SampleGroup, ScoredGroup, StepTotals

IntArray = NDArray[np.int64]


@dataclass
class Experience:
    """The responses of a rollout that are trained on, with numbers for each of their tokens.

    A response that is not trained on (unscored, or cut off where those are masked) is an empty slot: it has no tokens.
    """

    number: int  #: of the rollout, from 0
    cursor: int  #: place of the next prompt in the stream
    examples: Examples  #: prompts with their kept responses
    index: IntArray  #: row of the data set of each group, (groups,)
    score: Tensor  #: (responses,) nan where there is none
    truncated: Tensor  #: (responses,) cut off at the length limit
    #: by name, one number for every trained token in the order of the responses, float32
    tokens: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  #: of the rollout, logged with its first step

    @classmethod
    def of(
        cls,
        number: int,
        cursor: int,
        kept: Sequence[ScoredGroup],
        slots: int,
        *,
        mask_truncated: bool = False,
        everything: bool = False,
    ) -> Experience:
        """Gather the groups of a rollout into columns.

        Args:
            number: of the rollout.
            cursor: place of the next prompt.
            kept: groups to train on.
            slots: of each group the first samples are kept, this many.
            mask_truncated: responses that were cut off are not trained on.
            everything: every response has its tokens, whether it is trained on or not.
        """
        score = torch.tensor([numbers(scored.score[:slots]) for scored in kept], dtype=torch.float32).flatten()
        samples = [sample for scored in kept for sample in scored.group.samples[:slots]]
        truncated = torch.tensor([sample.finish == "length" for sample in samples])
        trained = ~score.isnan() & ~(truncated & mask_truncated) | everything
        ids = [sample.ids if used else [] for sample, used in zip(samples, trained.tolist(), strict=True)]
        examples = _examples([scored.group for scored in kept], ids)
        index = np.array([scored.group.index for scored in kept], dtype=np.int64)
        experience = cls(number, cursor, examples, index, score, truncated)
        drawn = [s.log_probs if used else [] for s, used in zip(samples, trained.tolist(), strict=True)]
        if all(len(own) == len(tokens) for own, tokens in zip(drawn, ids, strict=True)):
            experience.tokens["rollout_log_probs"] = torch.tensor([x for own in drawn for x in own])
        return experience

    @property
    def slots(self) -> int:
        """Responses of a group."""
        return self.examples.slots

    @property
    def lengths(self) -> IntArray:
        """Trained tokens of each response, (responses,)."""
        return self.examples.slot_tokens.ravel().astype(np.int64)

    @property
    def sequence(self) -> Tensor:
        """The response of every trained token."""
        return torch.from_numpy(np.repeat(np.arange(len(self.lengths)), self.lengths))

    def ragged(self, values: Tensor) -> Ragged:
        """One number for every trained token in this layout."""
        return Ragged(values, self.sequence, len(self.lengths))

    def places(self, groups: IntArray) -> Tensor:
        """Where the trained tokens of some groups lie in the flat order of all, in the order of a batch of them."""
        each = self.examples.slot_tokens.sum(axis=1, dtype=np.int64)
        start, length = (np.cumsum(each) - each)[groups], each[groups]
        ahead = np.cumsum(length) - length
        return torch.from_numpy(np.arange(int(length.sum())) + np.repeat(start - ahead, length))

    def batch(self, groups: IntArray, totals: StepTotals, step: IntArray | None = None) -> RolloutBatch:
        """Some groups as a micro-batch, with every number that is known of their tokens.

        Args:
            groups: which.
            totals: denominators of the optimiser step.
            step: all groups of the step, whose advantages have moments; None: before there are advantages.
        """
        packed = pack(self.examples.select(groups), totals=totals, indices=self.index[groups])
        layout = {declared.name: getattr(packed, declared.name) for declared in fields(PackedBatch)}
        at = self.places(groups)
        slots = torch.from_numpy((groups[:, None] * self.slots + np.arange(self.slots)).ravel())
        known = {name: values[at] for name, values in self.tokens.items() if name in RolloutBatch.TOKEN_FIELDS}
        return RolloutBatch(
            **layout | known,
            score=self.score[slots],
            truncated=self.truncated[slots],
            rollout=self.number,
            advantage_moments=(0.0, 1.0) if step is None else self.moments(step),
        )

    def moments(self, groups: IntArray) -> tuple[float, float]:
        """Mean and standard deviation (biased) of the advantages of some groups' tokens; of none 0 and 1."""
        if "advantage" not in self.tokens:
            return 0.0, 1.0
        values = self.tokens["advantage"][self.places(groups)].double()
        return (float(values.mean()), float(values.std(correction=0))) if len(values) else (0.0, 1.0)

    def scatter(self, found: Mapping[str, list[tuple[IntArray, Tensor]]]) -> dict[str, Tensor]:
        """Numbers that came batch by batch, each with its groups, in the order of the responses."""
        total = int(self.lengths.sum())
        flat: dict[str, Tensor] = {}
        for name, parts in found.items():
            values = torch.full((total,), torch.nan)
            for groups, part in parts:
                values[self.places(groups)] = part
            flat[name] = values
        return flat

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        return {
            "number": self.number,
            "cursor": self.cursor,
            "ids": torch.from_numpy(np.array(self.examples.tokens)),
            "bounds": torch.from_numpy(np.array(self.examples.bounds)),
            "rows": self.examples.names.to_pylist(),
            "index": torch.from_numpy(self.index),
            "score": self.score,
            "truncated": self.truncated,
            "tokens": dict(self.tokens),
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Experience:
        """What :meth:`state_dict` described.

        Raises:
            ValueError: another version wrote it.
        """
        check_state(state, ("number", "cursor", "ids", "bounds", "rows", "index", "score", "truncated", "tokens"))
        return cls(
            state["number"],
            state["cursor"],
            _view(state["ids"].numpy(), state["bounds"].numpy(), state["rows"]),
            state["index"].numpy(),
            state["score"],
            state["truncated"],
            dict(state["tokens"]),
            dict(state.get("metrics", {})),
        )


def _examples(groups: Sequence[SampleGroup], responses: list[list[int]]) -> Examples:
    """Prompts with equally many responses each; every response may be empty, even all of a prompt."""
    slots = len(responses) // len(groups)
    parts = [
        part for at, group in enumerate(groups) for part in (group.prompt, *responses[at * slots : (at + 1) * slots])
    ]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    ends = np.cumsum(lengths)
    cuts = np.concatenate([(ends - lengths).reshape(len(groups), -1), ends[slots :: slots + 1, None]], axis=1)
    ids = np.fromiter((token for part in parts for token in part), dtype=np.int32, count=int(lengths.sum()))
    return _view(ids, cuts, [group.row for group in groups])


def _view(ids: NDArray[np.int32], bounds: IntArray, rows: list[str]) -> Examples:
    scored = np.ones(len(ids), dtype=bool)
    for start, end in bounds[:, :2].tolist():
        scored[start:end] = False
    return Examples(
        ids,
        scored,
        bounds,
        np.diff(bounds[:, 1:], axis=1).astype(np.int32),
        pa.array(rows, pa.large_string()),
        None,
        np.arange(len(bounds), dtype=np.int64),
    )


def exact_totals(plan: Plan, step: int) -> StepTotals:
    """Denominators of a step; one token at least, so that a step without any has a mean, which is 0."""
    totals = plan.totals(step)
    if any(totals.slot_tokens):
        return totals
    return totals._replace(slot_tokens=(1, *totals.slot_tokens[1:]))


def numbers(scores: Sequence[float | None]) -> list[float]:
    """Scores with nan for those that are missing."""
    return [torch.nan if score is None else score for score in scores]
