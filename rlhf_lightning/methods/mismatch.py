"""Corrections of policy-gradient losses for an inference engine whose log-probs differ from the trainer's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rlhf_lightning.ops.engine_correction import engine_log_ratio, masked, off_policy, sequence_log_ratio, truncated
from rlhf_lightning.ops.kl import k3
from rlhf_lightning.ops.transfer import positions
from rlhf_lightning.types import Ragged, Weighted

Correction = Literal["none", "tis", "clamp", "icepop", "seq_mask"]
SequenceRatio = Literal["product", "geometric_mean"]
Outside = Literal["mask", "truncate"]

#: Bounds of the weights where none are given.
BOUNDS: dict[str, tuple[float, float]] = {
    "none": (0.0, math.inf),
    "tis": (0.0, 2.0),
    "clamp": (0.5, 5.0),
    "icepop": (0.5, 5.0),
    "seq_mask": (0.0, 3.0),
}


@dataclass(frozen=True)
class Mismatch:
    r"""Importance weights :math:`w_t = \pi_{old}(y_t) / \pi_{roll}(y_t)` that correct for the engine's own arithmetic.

    ``old`` is the policy at the rollout by the trainer's forward pass, ``roll`` the same policy as the engine computed
    it. The ratio of the loss stays policy to old; the weight multiplies the loss of each token and is a constant.
    Tokens whose weight is 0 still count in the loss's denominator.

    * ``none``: no weights; the gap is measured and logged.
    * ``tis``: :math:`\min(w_t, high)` ("Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025).
    * ``clamp``: :math:`w_t` held in ``[low, high]``.
    * ``icepop``: :math:`w_t` within ``[low, high]``, 0 outside ("Small Leak Can Sink a Great Ship", 2025).
    * ``seq_mask``: one weight a response, the product of its tokens' weights or their geometric mean; where it leaves
      ``[low, high]`` it is 0, or truncated.

    Defaults: high 2 for ``tis``, the blog's; [0.5, 5] for ``clamp`` and ``icepop`` as in OpenRLHF; no lower bound and
    high 3 for ``seq_mask`` as in TRL 1.16, whose default mode it is. A geometric mean lies much nearer 1 than a
    product: give it bounds of its own.

    Attributes:
        correction: see above.
        low: lower bound of a weight; None: the correction's own.
        high: upper bound; None: the correction's own; ``inf``: none.
        ratio: of ``seq_mask``: ``product`` or ``geometric_mean``.
        outside: of ``seq_mask``: ``mask`` or ``truncate``.
        bypass: the engine's log-probs are the old ones, so that the loss's ratio, policy to rollout, contains the
            weight and the trainer's pass over the old policy is saved. No correction can be combined with it: the
            weight would count twice.
        off_policy_threshold: leave out tokens of negative advantage in responses whose log-probs have fallen by more
            than this since they were drawn, nats a token (DeepSeek-V3.2, arXiv:2512.02556 eq. 9); None: none.

    Raises:
        ValueError: an option is unknown or out of range, or belongs to another correction.
    """

    correction: Correction = "none"
    low: float | None = None
    high: float | None = None
    ratio: SequenceRatio = "product"
    outside: Outside = "mask"
    bypass: bool = False
    off_policy_threshold: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("correction", Correction), ("ratio", SequenceRatio), ("outside", Outside)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"method.policy_loss.mismatch.{name}={getattr(self, name)!r}: choose from {get_args(allowed)}"
                )
        self._check_bounds()
        if self.bypass and self.correction != "none":
            raise ValueError(
                f"method.policy_loss.mismatch.bypass=true with correction={self.correction}: the loss's ratio contains "
                "the weight already and it would count twice; choose correction=none or bypass=false"
            )
        if self.off_policy_threshold is not None and not self.off_policy_threshold > 0:
            raise ValueError(
                f"method.policy_loss.mismatch.off_policy_threshold={self.off_policy_threshold} must be positive"
            )

    def _check_bounds(self) -> None:
        given = [name for name in ("low", "high") if getattr(self, name) is not None]
        if given and self.correction == "none":
            raise ValueError(f"method.policy_loss.mismatch.{given[0]} bounds nothing: correction=none has no weights")
        if self.low is not None and self.correction == "tis":
            raise ValueError("method.policy_loss.mismatch.low: tis has no lower bound; choose correction=clamp")
        if self.correction != "seq_mask" and (self.ratio, self.outside) != ("product", "mask"):
            raise ValueError(
                f"method.policy_loss.mismatch.ratio and outside belong to correction=seq_mask, not to {self.correction}"
            )
        low, high = self.bounds
        if not 0 <= low <= 1 <= high:
            raise ValueError(
                f"method.policy_loss.mismatch: bounds [{low}, {high}] must contain 1, the weight where engine and "
                "trainer agree, and begin at 0 or above"
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of a weight."""
        low, high = BOUNDS[self.correction]
        return low if self.low is None else float(self.low), high if self.high is None else float(self.high)

    @property
    def needs_rollout(self) -> bool:
        """True where the engine must give log-probs."""
        return self.bypass or self.correction != "none"

    def old(self, old: Ragged, rollout: Ragged | None) -> Ragged:
        """Log-probs in the denominator of the loss's ratio: the trainer's, or the engine's in bypass mode.

        Raises:
            ValueError: bypass mode, and the engine gave no log-probs.
        """
        return self._required(rollout) if self.bypass else old

    def __call__(self, old: Ragged, rollout: Ragged | None, drawn: int | None = None) -> Weighted:
        """Weights of the tokens and what they are made of.

        In bypass mode the weights are 1 and the diagnostics are those of the two programs.

        Args:
            old: log-probs of the policy at the rollout by the trainer (the policy's own on the first step), nats.
            rollout: log-probs that the engine returned, nan where it gave none; None: it gave none at all.
            drawn: how many it gave, where the host knows; None: the device is asked.

        Raises:
            ValueError: weights are asked for and the engine gave no log-probs.
        """
        if rollout is None and not self.needs_rollout:
            return Weighted(torch.ones_like(old.token, dtype=torch.float32))
        rollout = self._required(rollout)
        delta = engine_log_ratio(old.token, rollout.token)
        weight, dropped = self._weights(delta, old)
        given = ~rollout.token.isnan()
        finite = delta[given] if drawn is None else delta.index_select(0, positions(given, drawn))
        return Weighted(weight, _diagnostics(finite, weight, dropped))

    def keep(self, old: Ragged, rollout: Ragged | None, policy: Ragged, advantage: Tensor) -> Tensor:
        """1 for each token that is trained on, 0 for those that ``off_policy_threshold`` leaves out.

        Args:
            old: log-probs of the policy at the rollout by the trainer.
            rollout: log-probs that the engine returned, which drew the tokens and are preferred; None: ``old``.
            policy: log-probs of the policy as it is now.
            advantage: of each token.
        """
        if self.off_policy_threshold is None:
            return torch.ones_like(policy.token, dtype=torch.float32)
        behaviour = old if rollout is None else rollout
        dropped = off_policy(
            behaviour.token, policy.token, advantage, policy.sequence, policy.count, self.off_policy_threshold
        )
        return (~dropped).float()

    def _weights(self, delta: Tensor, layout: Ragged) -> tuple[Tensor, Tensor]:
        """Weights, and whether each token's was outside the bounds and made 0."""
        if self.correction == "none":
            return torch.ones_like(delta), torch.zeros_like(delta)
        if self.correction == "seq_mask":
            mean = self.ratio == "geometric_mean"
            delta = sequence_log_ratio(delta, layout.sequence, layout.count, mean=mean)
        masks = self.correction == "icepop" or (self.correction == "seq_mask" and self.outside == "mask")
        weight = (masked if masks else truncated)(delta, *self.bounds)
        return weight, (weight == 0).float() if masks else torch.zeros_like(delta)

    def _required(self, rollout: Ragged | None) -> Ragged:
        if rollout is None:
            what = "bypass=true" if self.bypass else f"correction={self.correction}"
            raise ValueError(
                f"method.policy_loss.mismatch.{what} needs the engine's log-probs and this engine gives none: "
                "choose rollout=transformers, vllm or vllm_server, or method.policy_loss.mismatch=null"
            )
        return rollout


def _diagnostics(delta: Tensor, weight: Tensor, dropped: Tensor) -> dict[str, Tensor]:
    """Numbers of tokens; the smallest weight is that of the tokens that are given together."""
    gap = delta.abs()
    return {
        "gap/mean": gap,
        "gap/max": gap,
        "kl": k3(-delta),
        "weight/mean": weight,
        "weight/max": weight,
        "weight/min": weight.min() if len(weight) else weight,
        "masked": dropped,
    }
