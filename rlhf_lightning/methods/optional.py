"""Inputs of losses that only some data sets bring: margins, win probabilities, which model drew a response."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.types import PackedBatch, PreferenceBatch

#: By input: what is missing, and the columns of the data that bring it.
_COLUMNS = {
    "margin": ("the margin of each pair", "margin (or score_chosen and score_rejected)"),
    "win_probability": (
        "the probability that each response beats one of the policy, from 0 to 1",
        "win_chosen and win_rejected (of ranked lists scores, from 0 to 1)",
    ),
    "policy_sample": ("the response of each pair that the policy drew", "policy_sample, with chosen or rejected in it"),
    "reference_sample": (
        "the response of each pair that the reference drew",
        "reference_sample, with chosen or rejected in it",
    ),
}


def check_inputs(datamodule: Any, inputs: Collection[str], stage: str) -> None:
    """Refuse data that lacks what a loss asks for, before any weight loads, where the data module can tell.

    Args:
        datamodule: with ``has_input(name)``; without it nothing is checked.
        inputs: that the loss asks for.
        stage: ``predict`` needs nothing; only ``fit`` needs to know who drew a response.

    Raises:
        ValueError: the data lacks one; the message names the columns.
    """
    has_input = getattr(datamodule, "has_input", None)
    if has_input is None or stage == "predict":
        return
    for name in sorted(set(inputs) & set(_COLUMNS)):
        if (stage == "fit" or name not in PreferenceBatch.DRAWN_BY) and not has_input(name):
            raise _missing(name)


def given(batch: PackedBatch, name: str) -> Tensor:
    """Numbers of a batch by the name of the input; where the data does not state who drew a response, nobody did.

    Raises:
        ValueError: the batch has none; the message names the columns.
    """
    values: Tensor | None = getattr(batch, name)
    if values is None and name in PreferenceBatch.DRAWN_BY:
        return torch.zeros(len(batch.response_span), device=batch.ids.device)
    if values is None:
        raise _missing(name)
    return values


def _missing(name: str) -> ValueError:
    what, columns = _COLUMNS[name]
    return ValueError(
        f"the loss needs {what}, but the data has none: set data.spec.columns.{columns}, or choose a method without it"
    )
