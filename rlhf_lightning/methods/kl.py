r"""What the distance to the reference costs: a part of the reward, or a term of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.ops.kl import ESTIMATORS

_PLACES = ("reward", "loss", "none")
_CONTROLLERS = ("fixed", "adaptive")


class KLPenalty(nn.Module):
    r"""A KL penalty, where it is charged, how it is estimated and how its coefficient moves.

    In the reward the estimate is a detached number of the rollout's policy, charged at every token; k1 is right there.
    In the loss it is differentiated: k1 has no gradient in expectation, k2 has the on-policy gradient of the KL,
    k3 a biased one (GRPO's). After the first step on a rollout its samples are off-policy; ``is_correct`` multiplies
    the loss's estimate by the ratio :math:`\rho_t`, through which gradients flow too: with k3 the gradient is then
    :math:`\rho\,\delta\,\nabla\log\pi`, that of the KL on and off policy.

    The adaptive controller moves the coefficient once a rollout,
    :math:`\beta \leftarrow \beta\,(1 + \mathrm{clip}(KL / target - 1, \pm 0.2)\,n / horizon)`, where KL is the mean
    over the rollout's n responses of the estimate summed over tokens (arXiv:1909.08593, section 2.2).

    Args:
        place: ``reward``, ``loss`` or ``none``.
        estimator: ``k1``, ``abs``, ``k2``, ``k3`` or ``k3_straight_through`` (the value of k3, the gradient of k2).
        coef: the coefficient, in reward a nat; that of the start under the adaptive controller.
        controller: ``fixed`` or ``adaptive``.
        target: nats a response that the adaptive controller aims at.
        horizon: responses over which it acts.
        is_correct: multiply the estimate in the loss by the ratio to the old policy.
        max_log_ratio: bound of the log-ratio before it is exponentiated, nats.

    Raises:
        ValueError: an option is unknown or out of its range.
    """

    coef: Tensor  #: the coefficient as it stands, 0-dimensional, float64

    def __init__(
        self,
        place: Literal["reward", "loss", "none"] = "reward",
        estimator: str = "k1",
        coef: float = 0.05,
        *,
        controller: Literal["fixed", "adaptive"] = "fixed",
        target: float = 6.0,
        horizon: int = 10_000,
        is_correct: bool = False,
        max_log_ratio: float = 20.0,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("place", place, _PLACES),
            ("controller", controller, _CONTROLLERS),
            ("estimator", estimator, tuple(ESTIMATORS)),
        ):
            if value not in allowed:
                raise ValueError(f"method.kl.{name}={value!r}; it can be {', '.join(allowed)}")
        if not coef >= 0 or not target > 0 or not horizon > 0 or not max_log_ratio > 0:
            raise ValueError(
                f"method.kl: coef={coef} must be at least 0, and target={target}, horizon={horizon} and "
                f"max_log_ratio={max_log_ratio} positive"
            )
        if is_correct and place != "loss":
            raise ValueError("method.kl.is_correct=true corrects a term of the loss: set method.kl.place=loss")
        self.place, self.estimator, self.controller = place, estimator, controller
        self.target, self.horizon, self.is_correct, self.max_log_ratio = target, horizon, is_correct, max_log_ratio
        self.active = place != "none" and coef > 0
        self.register_buffer("coef", torch.tensor(float(coef), dtype=torch.float64))

    @property
    def in_reward(self) -> bool:
        """Whether it is charged in the reward."""
        return self.active and self.place == "reward"

    @property
    def in_loss(self) -> bool:
        """Whether it is a term of the loss."""
        return self.active and self.place == "loss"

    @property
    def moves(self) -> bool:
        """Whether the coefficient changes from rollout to rollout."""
        return self.active and self.controller == "adaptive"

    def estimate(self, log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """KL of each token, nats, before the coefficient.

        Args:
            log_ratio: policy less reference.
        """
        return ESTIMATORS[self.estimator](log_ratio.clamp(-self.max_log_ratio, self.max_log_ratio))

    def term(
        self, policy: Float[Tensor, " n"], reference: Float[Tensor, " n"], old: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """What each token adds to the loss before the coefficient, through which gradients flow.

        Args:
            policy: log-probs of the policy.
            reference: log-probs of the reference.
            old: log-probs of the policy that drew the tokens, detached.
        """
        estimate = self.estimate(policy - reference)
        if not self.is_correct:
            return estimate
        return estimate * (policy - old).clamp(-self.max_log_ratio, self.max_log_ratio).exp()

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
