"""Shaping of the scores of a rollout before credit is assigned: clipping, scaling, and unfinished responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Scale = Literal["none", "running", "ref"]
MissingEos = Literal["none", "subtract", "replace"]


class RewardShaping(nn.Module):
    r"""Scores as the policy is trained on them.

    In order: the running statistics take the rollout's scores in; scores are centred and divided by a standard
    deviation; they are clipped; responses that did not end are penalised. The KL penalty comes afterwards, on tokens.
    Statistics are buffers: equal on every process, since each holds the whole rollout, and in the checkpoint.

    Sources: "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593 (centre and scale on samples of the
    reference policy; responses without a sentence's end score -1); MOSS-RLHF, arXiv:2307.04964, and its code (running
    scale, then clip); trlX (clip, then scale); arXiv:2403.17031 (responses without EOS score -1).

    Args:
        clip: bound of the absolute score; None: none. trlX, OpenRLHF and MOSS have 10, DeepSpeed-Chat and ColossalChat
            5.
        clip_first: clip before scaling instead of after it.
        scale: divide by the standard deviation of all scores so far (``running``), of the scores on samples of the
            initial policy (``ref``: the first ``ref_samples`` responses, which the policy draws before it is trained),
            or not.
        center: also subtract the mean of the same scores. Only with a scale.
        ref_samples: responses that ``ref`` measures at least; rollouts are taken whole. OpenAI's code had 256.
        missing_eos: of responses that reached the length limit (with ``rollout.truncate_after``: without that token):
            ``subtract`` a penalty from the score (TRL), or ``replace`` the score by it (OpenAI, arXiv:2403.17031).
        missing_eos_penalty: subtracted, or its negative replaces the score.

    Raises:
        ValueError: an unknown choice or a number out of range.
    """

    mean: Tensor
    squares: Tensor
    count: Tensor

    def __init__(
        self,
        *,
        clip: float | None = None,
        clip_first: bool = False,
        scale: Scale = "none",
        center: bool = False,
        ref_samples: int = 256,
        missing_eos: MissingEos = "none",
        missing_eos_penalty: float = 1.0,
    ) -> None:
        super().__init__()
        if scale not in get_args(Scale) or missing_eos not in get_args(MissingEos):
            raise ValueError(
                f"method.credit.shaping.scale={scale!r} can be {', '.join(get_args(Scale))}, and "
                f"missing_eos={missing_eos!r} {', '.join(get_args(MissingEos))}"
            )
        if (clip is not None and clip <= 0) or ref_samples < 2:
            raise ValueError(
                f"method.credit.shaping.clip={clip} must be positive or null, and ref_samples={ref_samples} at least 2"
            )
        if center and scale == "none":
            raise ValueError(
                "method.credit.shaping.center=true needs the mean of some scores: set scale=running or scale=ref"
            )
        self.clip, self.clip_first, self.scale, self.center = clip, clip_first, scale, center
        self.ref_samples = ref_samples
        self.missing_eos, self.missing_eos_penalty = missing_eos, missing_eos_penalty
        for name in ("mean", "squares", "count"):
            # Double precision: a sum of squares over a long run.
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @property
    def std(self) -> Float[Tensor, ""]:
        """Unbiased standard deviation of the scores that were taken in; 1 before there are two."""
        if self.count < 2:
            return torch.ones_like(self.mean)
        return (self.squares / (self.count - 1)).sqrt()

    def forward(
        self, reward: Float[Tensor, " responses"], truncated: Bool[Tensor, " responses"]
    ) -> Float[Tensor, " responses"]:
        """The shaped scores of a whole rollout; updates the statistics. nan, no score, stays nan.

        Args:
            reward: score of each response over all processes.
            truncated: whether it reached the length limit.
        """
        self.observe(reward[~reward.isnan()])
        return self.shaped(reward, truncated)

    def shaped(
        self, reward: Float[Tensor, " responses"], truncated: Bool[Tensor, " responses"]
    ) -> Float[Tensor, " responses"]:
        """The shaped scores; the statistics stay as they are, as in validation."""
        shaped = self._clipped(reward) if self.clip_first else reward
        if self.scale != "none":
            centred = shaped - self.mean.to(shaped) if self.center else shaped
            shaped = centred / self.std.to(shaped).clamp(min=1e-6)
        shaped = shaped if self.clip_first else self._clipped(shaped)
        if self.missing_eos == "subtract":
            return shaped - self.missing_eos_penalty * truncated.to(shaped)
        if self.missing_eos == "replace":
            return shaped.masked_fill(truncated & ~shaped.isnan(), -self.missing_eos_penalty)
        return shaped

    def _clipped(self, reward: Tensor) -> Tensor:
        return reward if self.clip is None else reward.clamp(-self.clip, self.clip)

    @torch.no_grad()
    def observe(self, reward: Float[Tensor, " scored"]) -> None:
        """Take scores into the mean and the standard deviation, by counts (Chan et al.'s merge of two samples)."""
        measured = self.scale == "ref" and self.count >= self.ref_samples
        if self.scale == "none" or measured or not len(reward):
            return
        new = (self._clipped(reward) if self.clip_first else reward).to(self.mean)
        total = self.count + len(new)
        shift = new.mean() - self.mean
        self.squares.add_(((new - new.mean()) ** 2).sum() + shift**2 * self.count * len(new) / total)
        self.mean.add_(shift * len(new) / total)
        self.count.copy_(total)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RewardShaping:
        """Follow the module to another device, never to another dtype: half precision cannot count."""
        exact = {name: buffer.clone() for name, buffer in self.named_buffers()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self
