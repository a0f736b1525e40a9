"""Guidance by a reward while responses are drawn: on tokens, or on blocks of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.types import Sample

Ids = Sequence[int]


class PrefixValue(Protocol):
    """Values of responses that may not have ended yet."""

    def __call__(self, prompts: Sequence[Ids], candidates: Sequence[Sequence[Sample]]) -> list[list[float | None]]:
        """One number for each candidate, higher is better; None: it cannot be judged.

        Args:
            prompts: token ids.
            candidates: of each prompt; ``finish`` is ``length`` where a response has not ended.
        """
        ...


@dataclass(frozen=True)
class TokenReward:
    r"""The logits :math:`\log p(y_t) + w\,r(x, y_{\le t})` of the most likely tokens; all others are left out.

    Source: "ARGS: Alignment as Reward-Guided Search", arXiv:2402.01694.

    Attributes:
        value: r, asked for every candidate at every token.
        weight: w.
        top_k: candidates.
    """

    value: PrefixValue
    weight: float
    top_k: int

    def logits(
        self,
        prompts: Sequence[Ids],
        prefixes: Sequence[list[int]],
        logits: Float[Tensor, "rows vocabulary"],
        ends: Int[Tensor, " ends"],
        forbidden: Int[Tensor, " tokens"] | None = None,
    ) -> Float[Tensor, "rows vocabulary"]:
        """Guided logits; a candidate that cannot be judged counts as the mean of those of its row that can.

        Args:
            prompts: of each row.
            prefixes: of each row: the tokens of its response so far.
            logits: of the next token, float32.
            ends: tokens that end a response.
            forbidden: tokens that are no candidates.
        """
        log_probs = logits.log_softmax(-1)
        if forbidden is not None:
            log_probs = log_probs.index_fill(1, forbidden, -torch.inf)
        likely, tokens = log_probs.topk(min(self.top_k, log_probs.shape[-1]), dim=-1)
        final = set(ends.tolist())
        candidates = [
            [Sample([*prefix, token], [], "stop" if token in final else "length") for token in row]
            for prefix, row in zip(prefixes, tokens.tolist(), strict=True)
        ]
        rewards = [_complete(row) for row in self.value(prompts, candidates)] if candidates else []
        bonus = likely.new_tensor(rewards).view_as(likely)
        return torch.full_like(log_probs, -torch.inf).scatter_(1, tokens, likely + self.weight * bonus)


@dataclass(frozen=True)
class BlockChoice:
    """Several candidates of a response, of which the best one is continued after each block of tokens.

    Source: "Controlled Decoding from Language Models", arXiv:2310.17022 (blockwise best-of-K).

    Attributes:
        value: of a prompt and a response so far.
        candidates: K; 1 is sampling.
        tokens: M, of a block; from the longest response on this is best-of-K.
    """

    value: PrefixValue
    candidates: int
    tokens: int

    def best(self, prompts: Sequence[Ids], candidates: Sequence[Sequence[Sample]]) -> list[int]:
        """Index of each prompt's candidate to continue: the first of the best; one without a value is the worst."""
        values = self.value(prompts, candidates) if candidates else []
        judged = [[-math.inf if value is None else value for value in row] for row in values]
        return [row.index(max(row)) for row in judged]


def _complete(rewards: Sequence[float | None]) -> list[float]:
    """Rewards of one row with the mean of the others in the place of those that are missing; 0 without any."""
    given = [reward for reward in rewards if reward is not None]
    mean = fmean(given) if given else 0.0
    return [mean if reward is None else reward for reward in rewards]
