"""Functions that several selectors need: samples that may be in a group or win, pairs, and counts.

A score that is nan or infinite is none. ``cut_off`` says what a sample that was cut off at the length limit may do:
nothing (``drop``), lose (``lose``), or all that a finished one may (``keep``), for responses of a fixed length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from rlhf_lightning.ops.streams import uniforms
from rlhf_lightning.types import Selected

Scores = Float[Tensor, "prompts samples"]
Lengths = Num[Tensor, "prompts samples"]
Mask = Bool[Tensor, "prompts samples"]
Draws = Int[Tensor, " samples"]
CutOff = Literal["drop", "lose", "keep"]
DropOrKeep = Literal["drop", "keep"]
Ties = DropOrKeep


def eligible(score: Scores, truncated: Mask, cut_off: CutOff) -> tuple[Mask, Mask]:
    """Samples that may be in a group, and those of them that may win."""
    with_score = score.isfinite()
    finished = with_score & ~truncated
    return (finished if cut_off == "drop" else with_score), (with_score if cut_off == "keep" else finished)


def of_draw(source: Draws, number: int) -> Int[Tensor, " drawn"]:
    """The samples of a draw, in their order."""
    return (source == number).nonzero()[:, 0]


def best_against(rank: Scores, rival: Scores, members: Mask, winners: Mask) -> tuple[Tensor, Tensor, Tensor]:
    """The sample of each prompt with the highest rank, and another one with the highest rival's rank.

    Args:
        rank: what the winner has most of; of ties the first sample.
        rival: what the other one has most of; of ties the last sample.
        members: samples that may be the other one.
        winners: samples that may win.

    Returns:
        Number of the one and of the other sample, and whether both exist, (prompts,) each.
    """
    best = rank.masked_fill(~winners, -torch.inf).argmax(1)
    others = members.scatter(1, best[:, None], False)
    backwards = rival.masked_fill(~others, -torch.inf).flip(1)
    other = rival.shape[1] - 1 - backwards.argmax(1)
    return best, other, winners.any(1) & others.any(1)


def one_pair(
    score: Scores, chosen: Int[Tensor, " prompts"], rejected: Int[Tensor, " prompts"], exists: Tensor, ties: Ties
) -> tuple[Selected, dict[str, float]]:
    """At most one pair a prompt, and the shares that all such selectors count.

    Args:
        score: whose difference is the margin; a pair with a negative one is left out.
        chosen: sample of each prompt.
        rejected: the same.
        exists: whether the prompt has both.
        ties: whether a pair with margin 0 stays.
    """
    margin = gap(score, chosen[:, None], rejected[:, None])
    tied = exists[:, None] & (margin == 0)
    kept = exists[:, None] & ((margin > 0) | (tied if ties == "keep" else False))
    lost = int((~exists).sum() + (exists[:, None] & (margin < 0)).sum())
    metrics = {"tie_rate": share(tied, exists), "left_out": float(lost)}
    return pairs(chosen[:, None], rejected[:, None], margin, kept), metrics


def pairs(chosen: Tensor, rejected: Tensor, margin: Tensor, kept: Tensor) -> Selected:
    """Pairs in the order of their prompts.

    Args:
        chosen: samples, (prompts, candidates).
        rejected: the same.
        margin: score(chosen) - score(rejected) of each candidate.
        kept: which candidates become groups.
    """
    return Selected(
        kept.nonzero()[:, 0],
        torch.stack([chosen[kept], rejected[kept]], dim=1),
        numbers={"margin": margin[kept].float()},
    )


def gap(values: Scores, first: Int[Tensor, "prompts pairs"], second: Int[Tensor, "prompts pairs"]) -> Tensor:
    """Value of one sample less that of another, (prompts, pairs)."""
    difference: Tensor = values.gather(1, first) - values.gather(1, second)
    return difference


def counted(selected: Selected, truncated: Mask, score: Scores | None, metrics: Mapping[str, float]) -> Selected:
    """Add a selector's metrics and the shares that are the same for all: cut-off samples, samples without a score."""
    everything = torch.ones_like(truncated)
    selected.metrics.update(metrics)
    selected.metrics["cut_off_rate"] = share(truncated, everything)
    if score is not None:
        selected.metrics["unscored_rate"] = share(~score.isfinite(), everything)
    return selected


def share(part: Tensor, whole: Tensor) -> float:
    """True elements of one mask over those of another; 0 of none."""
    return float(part.sum()) / max(float(whole.sum()), 1.0)


class PromptStreams:
    """Random numbers of each prompt of a round, whatever other prompts it has.

    Args:
        generator: gives one key a call of :meth:`draw`.
        prompts: of the round.
    """

    def __init__(self, generator: torch.Generator, prompts: int) -> None:
        self._generator, self._prompts = generator, prompts

    def draw(self, count: int) -> Float[Tensor, "prompts count"]:
        """The next numbers in [0, 1) of each prompt, float64."""
        key = int(torch.randint(2**62, (), generator=self._generator))
        return uniforms([(key, prompt) for prompt in range(self._prompts)], count)
