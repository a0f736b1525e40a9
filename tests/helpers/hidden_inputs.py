"""Inputs of the losses on distributions, hidden states and values, made from plain lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_lightning import losses
from rlhf_lightning.ops.divergence import Predictions
from rlhf_lightning.types import ActionValues, MeasuredLoss, Paraphrases, SequencePredictions
from tests.helpers.loss_inputs import ragged
from tests.helpers.reference_hidden import Instruction, Step, Vector

DISTILLATION = ("context_distillation", "knowledge_distillation")


def predictions(rows: list[list[Vector]], dtype: torch.dtype = torch.float64) -> SequencePredictions:
    """Logits as predictions: the state is the logits and the head's weight the identity."""
    hidden = torch.tensor([token for row in rows for token in row], dtype=dtype, requires_grad=True)
    sequence = torch.tensor([i for i, row in enumerate(rows) for _ in row])
    return SequencePredictions(Predictions(hidden, torch.eye(hidden.shape[1], dtype=dtype)), sequence, len(rows))


def paraphrases(groups: list[tuple[Instruction, Instruction]], dtype: torch.dtype) -> dict[str, Any]:
    members = [member for group in groups for member in group]
    states = [state for member in members for state in (member.state, member.other_state)]
    return {
        "policy": Paraphrases(
            ragged([member.original for member in members], dtype), ragged([m.paraphrase for m in members], dtype)
        ),
        "embedding": torch.tensor(states, dtype=dtype, requires_grad=True),
        "present": torch.tensor([bool(member.original) for member in members for _ in range(2)]),
    }


def values(responses: list[list[Step]], scores: Vector, dtype: torch.dtype) -> dict[str, Any]:
    steps = [step for row in responses for step in row]

    def leaf(numbers: list[Any]) -> Tensor:
        return torch.tensor(numbers, dtype=dtype).movedim(0, -1).contiguous().requires_grad_()

    made = ActionValues(
        leaf([s.q for s in steps]),
        leaf([s.target for s in steps]),
        leaf([s.value for s in steps]),
        leaf([s.q_log_prob for s in steps]),
    )
    policy = ragged([[s.log_prob for s in row] for row in responses], dtype)
    return {"policy": policy, "values": made, "score": torch.tensor(scores, dtype=dtype)}


def inputs(loss: str, given: tuple[Any, ...], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Inputs of a loss."""
    if loss in DISTILLATION:
        return {"policy": predictions(given[0], dtype), "reference": predictions(given[1], dtype)}
    return paraphrases(*given, dtype) if loss == "coin" else values(*given, dtype)


def run(loss: str, given: tuple[Any, ...], dtype: torch.dtype = torch.float64, **options: Any) -> MeasuredLoss:
    """A loss, by name, on plain numbers."""
    return getattr(losses, loss)(**inputs(loss, given, dtype), **options)
