"""A constraint on PPO: as much reward as a limit on the expected cost allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.credit.token_rewards import token_rewards
from rlhf_lightning.methods.assignment import Assignment
from rlhf_lightning.methods.kl import KLPenalty
from rlhf_lightning.methods.policy_options import CreditOptions
from rlhf_lightning.options import Positive
from rlhf_lightning.types import Credit, Episodes, Ragged


class Multiplier(nn.Module):
    r"""Lambda, the price of a unit of cost: it rises while the mean cost is above its limit, and falls below it.

    .. math:: \min_{\lambda \ge 0}\max_\theta\ E[R] - \lambda\,(E[C] - d), \qquad
              \ln\lambda \leftarrow \ln\lambda + \eta\,\lambda\,(\hat J_C - d)

    It moves once a rollout, before the advantages are made. :math:`\hat J_C` is the mean cost of the last episodes,
    those of the rollout among them, without KL penalty. A cost needs a zero that means something: a cost model's
    separates safe from unsafe. Lambda and the window of costs are buffers, equal on every process and in checkpoints.

    Source: "Safe RLHF", arXiv:2310.12773, sec. 3.3, and its code (PKU-Alignment/safe-rlhf); defaults are that code's.

    Args:
        cost: name of the reward's term that is limited; higher is worse.
        threshold: d, the limit of the mean cost.
        init: lambda at the start.
        lr: eta.
        maximum: highest lambda. A lambda that stays there does not enforce the limit; policies then tend to refuse
            everything.
        delay: first rollouts that do not move lambda.
        window: episodes of the mean cost.

    Raises:
        ValueError: a number is out of range.
    """

    log: Tensor  #: ln lambda, 0-dimensional, float64
    costs: Tensor  #: of the last episodes, oldest first; nan where there were none yet
    rollouts: Tensor  #: seen so far, 0-dimensional

    def __init__(
        self,
        cost: str = "cost",
        *,
        threshold: float = 0.0,
        init: float = 1.0,
        lr: float = 0.1,
        maximum: float = 5.0,
        delay: int = 0,
        window: int = 128,
    ) -> None:
        super().__init__()
        if not 0 < init <= maximum or lr < 0 or delay < 0 or window < 1:
            raise ValueError(
                f"method.credit.multiplier: init={init} must be positive and at most maximum={maximum}, lr={lr} and "
                f"delay={delay} at least 0, and window={window} at least 1"
            )
        self.cost, self.threshold, self.lr, self.maximum, self.delay = cost, threshold, lr, maximum, delay
        self.register_buffer("log", torch.tensor(math.log(init), dtype=torch.float64))
        self.register_buffer("costs", torch.full((window,), torch.nan, dtype=torch.float64))
        self.register_buffer("rollouts", torch.zeros((), dtype=torch.long))

    @property
    def value(self) -> Float[Tensor, ""]:
        """Lambda."""
        return self.log.exp()

    @property
    def mean_cost(self) -> float:
        """Mean cost of the episodes in the window; the threshold before there are any."""
        costs = self.costs[~self.costs.isnan()]
        return float(costs.mean()) if len(costs) else self.threshold

    @torch.no_grad()
    def update(self, costs: Float[Tensor, " episodes"]) -> None:
        """Take the costs of a rollout's episodes into the window, whose oldest leave it, and move lambda.

        Args:
            costs: over all processes, the same on each of them.
        """
        window = len(self.costs)
        self.costs.copy_(torch.cat([self.costs, costs.to(self.costs)])[-window:])
        self.rollouts.add_(1)
        if int(self.rollouts) > self.delay:
            self.log.add_(self.lr * float(self.value) * (self.mean_cost - self.threshold))
            self.log.clamp_(max=math.log(self.maximum))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Multiplier:
        """Follow the module to another device, never to another dtype: small steps of lambda count."""
        exact = {name: buffer.clone() for name, buffer in self.named_buffers()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


@dataclass(frozen=True)
class CriticCreditOptions(CreditOptions):
    """Options of ``CreditOptions``, and those of advantages from a critic's values.

    Attributes:
        whiten: advantages, over each optimiser step (``minibatch``), over the rollout, or not.
        whiten_unbiased: divide the squares by n - 1 instead of n.
        clip: bound of an absolute advantage, after whitening; None: none.
        multiplier: price of a cost, with a credit function that weighs one such as ``credit.lagrangian``; the critic
            then has two values a token, the second one of the cost (PPO-Lagrangian). None: there is no cost.
    """

    whiten: Literal["minibatch", "rollout", "none"] = "minibatch"
    whiten_unbiased: bool = True
    clip: Positive | None = None
    multiplier: Multiplier | None = None


class CostAssignment(Assignment):
    """Credit for a reward and, where there is a multiplier, for a cost that the reward has as a term.

    Args:
        advantage: see ``Assignment``.
        kl: see ``Assignment``.
        options: see ``Assignment``.

    Raises:
        ValueError: a multiplier without a credit function that weighs a cost, or such a function without one.
    """

    def __init__(self, advantage: Callable[..., Any], kl: KLPenalty, options: CriticCreditOptions) -> None:
        super().__init__(advantage, kl, options)
        if ("multiplier" in self.needs) != (options.multiplier is not None):
            raise ValueError(
                "method.credit.multiplier goes with method.advantage=credit.lagrangian: give both or neither"
            )
        self.multiplier = options.multiplier

    @property
    def cost_terms(self) -> frozenset[str]:
        """Terms of the reward that are costs which are limited: that of the multiplier."""
        return frozenset() if self.multiplier is None else frozenset({self.multiplier.cost})

    @torch.no_grad()
    def forward(self, episodes: Episodes) -> Credit:
        """See ``Assignment``; the multiplier moves first."""
        if self.multiplier is None:
            return self._credit(episodes)
        cost = self._cost(episodes, self.multiplier)
        self.multiplier.update(cost[~cost.isnan()])
        credit = self._credit(episodes)
        credit.metrics |= {"cost/lambda": float(self.multiplier.value), "cost/window": self.multiplier.mean_cost}
        return credit

    def _credit(self, episodes: Episodes) -> Credit:
        credit: Credit = super().forward(episodes)
        return credit

    def inputs(self, episodes: Episodes, shaped: Tensor, kl: Ragged | None) -> dict[str, Callable[[], Any]]:
        """See ``Assignment``; and what a credit function asks for of costs."""
        multiplier = self.multiplier
        if multiplier is None:
            return super().inputs(episodes, shaped, kl)
        penalty = kl if self.kl.in_reward else None
        return super().inputs(episodes, shaped, kl) | {
            "multiplier": lambda: multiplier.value,
            "cost_reward": lambda: token_rewards(
                self._cost(episodes, multiplier).nan_to_num(0.0),
                episodes.tokens["cost_value"],
                kl=penalty,
                coef=-float(self.kl.coef),
            ),
        }

    def _cost(self, episodes: Episodes, multiplier: Multiplier) -> Tensor:
        name = multiplier.cost
        if name not in episodes.terms:
            raise ValueError(
                f"the reward has no term {name!r} to limit; its terms are {sorted(episodes.terms)}: choose "
                "reward=composite with a cost model among reward.costs, or set method.credit.multiplier.cost to a "
                "term's name"
            )
        return episodes.terms[name]
