"""Rollouts of the tests' bigram policy without a loop: episodes, and batches that carry their credit."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning import credit
from rlhf_lightning.losses import ppo
from rlhf_lightning.methods import PolicyGradient
from rlhf_lightning.types import Episodes, Example, PackedBatch, Ragged, RolloutBatch
from tests.helpers.training import Builder, cut, examples

GROUPS, SLOTS = 4, 3
ROWS = examples(GROUPS, seed=3, responses=SLOTS)
TOKENS = sum(len(response) for row in ROWS for response in row.responses)


def module(loss: Any = ppo, *, reference: str = "frozen", advantage: Any = credit.grpo, **options: Any) -> Any:
    """A method around the bigram policy, built."""
    made = PolicyGradient(Builder(reference), loss, partial(torch.optim.SGD, lr=0.1), advantage=advantage, **options)
    made.configure_model()
    return made


def moved(module: Any, seed: int = 0, by: float = 0.05) -> Any:
    """The module after its policy has gone somewhere else; the reference stays."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.policy.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)
    return module


def episodes(rows: list[Example] = ROWS, scores: dict[str, Tensor] | None = None, **given: Any) -> Episodes:
    """Every response of some rows, with rewards that grow with length unless others are given."""
    lengths = torch.tensor([len(response) for row in rows for response in row.responses])
    slots = len(rows[0].responses)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    options: dict[str, Any] = {
        "group": torch.arange(len(lengths)) // slots,
        "reward": lengths.float() + torch.arange(len(lengths)) % 3,
        "truncated": torch.zeros(len(lengths), dtype=torch.bool),
        "length": lengths,
        "tokens": {name: Ragged(value, sequence, len(lengths)) for name, value in (scores or {}).items()},
    }
    return Episodes(**(options | given))


def rollout_batch(packed: PackedBatch, **given: Any) -> RolloutBatch:
    """A packed batch with what a rollout holds of its tokens."""
    return RolloutBatch(**({f.name: getattr(packed, f.name) for f in fields(packed)} | given))


def step(sizes: list[int] | None = None, advantage: Tensor | None = None, **tokens: Tensor) -> list[RolloutBatch]:
    """One step over ``ROWS`` in micro-batches of so many groups (None: all in one); advantages 0 by default."""
    advantage = torch.zeros(TOKENS) if advantage is None else advantage
    out, start = [], 0
    for packed in cut(ROWS, sizes or [GROUPS]):
        end = start + len(packed.target)
        part = {name: value[start:end] for name, value in {"advantage": advantage, **tokens}.items()}
        out.append(rollout_batch(packed, **part))
        start = end
    return out
