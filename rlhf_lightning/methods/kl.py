r"""The penalty for the distance to the reference: a part of the reward, or a term of the loss."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.ops.exponent import MAX_LOG_RATIO, bounded_exp
from rlhf_lightning.ops.kl import ESTIMATORS, estimated, k3
from rlhf_lightning.renamed import former_arguments
from rlhf_lightning.types import Ragged, SequenceLogProbs

log = logging.getLogger(__name__)

#: The estimator that is none: the KL itself, over the whole vocabulary.
FULL = "full"
_APPLIED_TO = ("reward", "loss", "none")
_CONTROLLERS = ("fixed", "adaptive")


@former_arguments("rlhf_lightning.methods.KLPenalty")
class KLPenalty(nn.Module):
    r"""A KL penalty: what it applies to, how it is estimated and how its coefficient moves.

    In the reward the estimate is a detached number of the rollout's policy, charged at every token; k1 is right there.
    In the loss it is differentiated: k1 has no gradient in expectation, k2 has the on-policy gradient of the KL,
    k3 a biased one (GRPO's). After the first step on a rollout its samples are off-policy; ``is_correct`` multiplies
    the loss's estimate by the ratio :math:`\rho_t`, through which gradients flow too: with k3 the gradient is then
    :math:`\rho\,\delta\,\nabla\log\pi`, that of the KL on and off policy.

    ``full`` estimates nothing: :math:`\sum_v \pi_\theta(v)\log(\pi_\theta(v) / \pi_{ref}(v))` at every token of a
    response, over the whole vocabulary in blocks (:mod:`rlhf_lightning.ops.divergence`), at the temperature of the
    log-probs, without a bound of the log-ratio. It is the mean of k1 over the token that is drawn, given those before.
    In the loss it is differentiated exactly: k2's expected gradient without its noise, also where the tokens are of an
    older policy. It needs the reference's distributions, so its forward pass in every step, where the others need it
    once a rollout.
    There is nothing in it for ``is_correct``: given the tokens before, the KL does not depend on the one that was
    drawn, so the ratio would multiply it by 1 in the mean, and add a gradient that is noise of mean 0.
    In the reward (``kl_penalty="full"`` of TRL before 0.12) it is a detached number that the token drawn has no part
    in, so it teaches to stay where the two models agree, not to agree there: the first-order pull of k1,
    :math:`E[\delta\,\nabla\log\pi] = \nabla KL`, is left out. Prefer ``apply_to: loss`` with it.

    The adaptive controller moves the coefficient once a rollout,
    :math:`\beta \leftarrow \beta\,(1 + \mathrm{clip}(KL / target - 1, \pm 0.2)\,n / horizon)`, where KL is the mean
    over the rollout's n responses of the estimate summed over tokens (arXiv:1909.08593, section 2.2).

    Args:
        apply_to: ``reward``, ``loss`` or ``none``.
        estimator: ``k1``, ``abs``, ``k2``, ``k3``, ``k3_straight_through`` (the value of k3, the gradient of k2) or
            ``full`` (no estimate; needs a live reference).
        coef: the coefficient, in reward a nat; that of the start under the adaptive controller.
        controller: ``fixed`` or ``adaptive``.
        target: nats a response that the adaptive controller aims at.
        horizon: responses over which it acts.
        is_correct: multiply the estimate in the loss by the ratio to the old policy; not with ``full``.
        max_log_ratio: bound of what is exponentiated, nats: in k3's value and in the ratio of ``is_correct``. What is
            linear or quadratic in the log-ratio (k1, ``abs``, k2) has no bound, so that its pull does not end there.

    Raises:
        ValueError: an option is unknown or out of its range.
    """

    coef: Tensor  #: the coefficient as it stands, 0-dimensional, float64

    def __init__(
        self,
        apply_to: Literal["reward", "loss", "none"] = "reward",
        estimator: str = "k1",
        coef: float = 0.05,
        *,
        controller: Literal["fixed", "adaptive"] = "fixed",
        target: float = 6.0,
        horizon: int = 10_000,
        is_correct: bool = False,
        max_log_ratio: float = MAX_LOG_RATIO,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("apply_to", apply_to, _APPLIED_TO),
            ("controller", controller, _CONTROLLERS),
            ("estimator", estimator, (*ESTIMATORS, FULL)),
        ):
            if value not in allowed:
                raise ValueError(f"method.kl.{name}={value!r}; it can be {', '.join(allowed)}")
        if not coef >= 0 or not target > 0 or not horizon > 0 or not max_log_ratio > 0:
            raise ValueError(
                f"method.kl: coef={coef} must be at least 0, and target={target}, horizon={horizon} and "
                f"max_log_ratio={max_log_ratio} positive"
            )
        if is_correct and apply_to != "loss":
            raise ValueError("method.kl.is_correct=true corrects a term of the loss: set method.kl.apply_to=loss")
        if is_correct and estimator == FULL:
            raise ValueError(
                "method.kl.is_correct=true weighs an estimate by the ratio of the token that it was made from, and "
                "method.kl.estimator=full has no such token: set method.kl.is_correct=false"
            )
        self.apply_to, self.estimator, self.controller = apply_to, estimator, controller
        self.target, self.horizon, self.is_correct, self.max_log_ratio = target, horizon, is_correct, max_log_ratio
        self.active = apply_to != "none" and coef > 0
        self.register_buffer("coef", torch.tensor(float(coef), dtype=torch.float64))
        if self.exact and self.in_reward:
            log.warning(
                "method.kl.estimator=full in the reward charges for where the models differ, whatever token is drawn "
                "there, so nothing pulls the policy back at that token: method.kl.apply_to=loss does"
            )

    @property
    def exact(self) -> bool:
        """True where it is charged, and is the KL over the whole vocabulary instead of an estimate."""
        return self.active and self.estimator == FULL

    @property
    def in_reward(self) -> bool:
        """True where it is charged in the reward."""
        return self.active and self.apply_to == "reward"

    @property
    def in_loss(self) -> bool:
        """True where it is a term of the loss."""
        return self.active and self.apply_to == "loss"

    @property
    def moves(self) -> bool:
        """True where the coefficient changes from rollout to rollout."""
        return self.active and self.controller == "adaptive"

    def estimate(self, log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """KL of each token, nats, before the coefficient.

        Args:
            log_ratio: policy less reference.

        Raises:
            ValueError: the KL is not estimated from log-ratios.
        """
        if self.estimator == FULL:
            raise ValueError("method.kl.estimator=full takes both models' distributions, not a log-ratio a token")
        return estimated(log_ratio, self.estimator, self.max_log_ratio)

    def term(
        self, policy: Float[Tensor, " n"], reference: Float[Tensor, " n"], old: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Term that each token adds to the loss, before the coefficient; gradients flow through it.

        Args:
            policy: log-probs of the policy.
            reference: log-probs of the reference.
            old: log-probs of the policy that drew the tokens, detached.
        """
        estimate = self.estimate(policy - reference)
        if not self.is_correct:
            return estimate
        return estimate * bounded_exp(policy - old, self.max_log_ratio)

    @torch.no_grad()
    def update(self, kl: float, responses: int) -> None:
        """Move the coefficient after a rollout; every process must give the same numbers.

        Args:
            kl: mean over the rollout's responses of their summed estimates, nats.
            responses: of the rollout.
        """
        if self.moves:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef.mul_(1 + error * responses / self.horizon)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KLPenalty:
        """Follow the module to another device, never to another dtype: small changes of the coefficient count."""
        exact = self.coef.clone()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.coef = exact.to(self.coef.device) if self.coef.device.type != "mps" else self.coef
        return self


@torch.no_grad()
def distance(policy: Ragged, reference: Float[Tensor, " response_tokens"] | None = None) -> dict[str, Tensor]:
    """Distance of the policy from the reference, as it is logged.

    Args:
        policy: log-probs of the policy; or, without a reference, the KL over the whole vocabulary at each token.
        reference: log-probs of the reference.

    Returns:
        ``kl/reference``, nats a response (k1 of the log-probs), and ``kl/token``, nats a token (k3); the sum and the
        numbers themselves of an exact KL.
    """
    if reference is None:
        exact = policy.with_token(policy.token.float())
        return {"kl/reference": exact.sum(), "kl/token": exact.token}
    log_ratio = policy.with_token(policy.token - reference)
    return {"kl/reference": log_ratio.sum(), "kl/token": k3(log_ratio.token)}


def scores_of_policy(policy: SequenceLogProbs, asked: Collection[str]) -> dict[str, Tensor]:
    """Numbers of a rollout that come from the policy's forward pass, by name, float32.

    Args:
        policy: of the rollout's responses.
        asked: names; of these, ``old_log_probs`` and ``reference_kl`` are returned.
    """
    scores = {"old_log_probs": policy.token, "reference_kl": policy.reference_kl}
    return {name: value.float() for name, value in scores.items() if name in asked and value is not None}
