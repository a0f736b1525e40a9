"""Comparison of the engine's log-probs of a rollout with the trainer's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.lessons.base import Round
from rlhf_lightning.rollout.probe import gap
from rlhf_lightning.rounds.processes import gathered
from rlhf_lightning.types import Example


def measured(
    learned: Round,
    policy: Any,
    *,
    temperature: float,
    score_temperature: float,
    rank: int,
    forward: Callable[[], AbstractContextManager[None]],
) -> dict[str, float]:
    """Mean and largest gap of a rollout; a collective call. Empty where the engine gives no log-probs.

    Where the method scored the rollout by the policy, every token counts. Elsewhere each process computes one response.

    Args:
        learned: the round, with the numbers that the method asks for.
        policy: the actor that is trained.
        temperature: of the samples.
        score_temperature: of the method's own log-probs; at another one than ``temperature`` they do not compare.
        rank: of this process.
        forward: a context in which a step's forward pass computes.
    """
    engine = learned.tokens.get("rollout_log_probs")
    if engine is None:
        return {}
    if "old_log_probs" in learned.tokens and score_temperature == temperature:
        return gap(engine, learned.tokens["old_log_probs"])
    pairs = gathered(_one_response(learned, engine, policy, temperature, rank, forward))
    return gap(torch.cat([drawn for drawn, _ in pairs]), torch.cat([trained for _, trained in pairs]))


def _one_response(
    learned: Round,
    engine: Tensor,
    policy: Any,
    temperature: float,
    rank: int,
    forward: Callable[[], AbstractContextManager[None]],
) -> tuple[Tensor, Tensor]:
    """Log-probs of the tokens of one response that has tokens, by the engine and by the trainer."""
    lengths = learned.lengths
    nonempty = np.flatnonzero(lengths)
    response = int(nonempty[(learned.number + rank) % len(nonempty)])
    group, slot = divmod(response, learned.slots)
    tokens, bounds = learned.examples.tokens, learned.examples.bounds[group]
    prompt = tokens[bounds[0] : bounds[1]].tolist()
    ids = tokens[bounds[slot + 1] : bounds[slot + 2]].tolist()
    batch = pack([Example(prompt, [ids])]).to(next(policy.parameters()).device)
    with forward():
        log_probs = policy(batch, temperature=temperature).token.float().cpu()
    start = int(lengths[:response].sum())
    return engine[start : start + int(lengths[response])], log_probs
