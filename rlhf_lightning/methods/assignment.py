"""From the rewards of a rollout to advantages: shaping, the KL penalty in the reward, the credit function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.credit import options as credit_options
from rlhf_lightning.credit.token_rewards import token_rewards
from rlhf_lightning.methods.kl import KLPenalty, distance
from rlhf_lightning.methods.policy_options import CreditOptions
from rlhf_lightning.methods.running import RunningMoments
from rlhf_lightning.types import Credit, Episodes, Ragged


class Assignment(nn.Module):
    """Credit assignment to the episodes of a rollout before its steps; the same on every process.

    Args:
        advantage: a credit function or a partial of one; see ``PolicyGradient``.
        kl: the penalty for leaving the reference.
        options: what is done with rewards around the credit function.

    Raises:
        ValueError: options do not go with the credit function.
    """

    def __init__(
        self,
        advantage: Callable[..., Any],
        kl: KLPenalty,
        options: CreditOptions,
    ) -> None:
        super().__init__()
        credit_options.validate(advantage)
        self.needs = credit_options.takes(advantage)
        self.advantage, self.kl, self.shaping = advantage, kl, options.shaping
        self.separate = options.multi_reward == "normalize_then_sum"
        self.weights = dict(options.reward_weights or {})
        if self.separate and "reward" not in self.needs:
            raise ValueError(
                "method.credit.multi_reward=normalize_then_sum needs a credit function of rewards, such as grpo"
            )
        if self.separate and kl.in_reward:
            raise ValueError(
                "method.credit.multi_reward=normalize_then_sum standardises each reward, and a KL penalty is none of "
                "them: set method.kl.apply_to=loss"
            )
        self.running = RunningMoments(options.running_decay) if "running" in self.needs else None

    @property
    def cost_terms(self) -> frozenset[str]:
        """Terms of the reward that are costs which are limited: none."""
        return frozenset()

    @torch.no_grad()
    def forward(self, episodes: Episodes) -> Credit:
        """Advantages of all episodes, and what to log of them."""
        shaped = episodes.reward if self.shaping is None else self.shaping(episodes.reward, episodes.truncated)
        kl = self.kl_of(episodes)
        fields = self.assigned(self.inputs(episodes, shaped, kl))
        if self.separate:
            fields["advantage"] = self._sum_of_terms(episodes, kl)
        tokens = {
            name: self._without_unrewarded(self._per_token(value, episodes), episodes) for name, value in fields.items()
        }
        metrics = self._metrics(episodes, kl, tokens["advantage"])
        if kl is not None:
            self.kl.update(float(kl.sum().mean()), len(episodes.reward))
        if self.running is not None:
            self.running.observe(shaped[~shaped.isnan()])
        return Credit(tokens, metrics)

    def assigned(self, inputs: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Return what the credit function gives, by the name of a field of ``RolloutBatch``."""
        result = self.advantage(**{name: inputs[name]() for name in self.needs})
        return dict(result) if isinstance(result, Mapping) else {"advantage": result}

    def kl_of(self, episodes: Episodes) -> Ragged | None:
        """Estimate of the KL at each token of the rollout, nats; None where log-probs of one model are missing."""
        if self.kl.exact:
            return episodes.tokens.get("reference_kl")
        old, reference = episodes.tokens.get("old_log_probs"), episodes.tokens.get("reference_log_probs")
        if old is None or reference is None:
            return None
        return old.with_token(self.kl.estimate(old.token - reference.token))

    def inputs(self, episodes: Episodes, shaped: Tensor, kl: Ragged | None) -> dict[str, Callable[[], Any]]:
        """Functions that make the inputs that a credit function may ask for, by name.

        Args:
            episodes: of the rollout.
            shaped: reward of each response.
            kl: of :meth:`kl_of`.
        """
        penalty = None if kl is None or not self.kl.in_reward else kl.with_token(kl.token * self.kl.coef.to(kl.token))
        return {
            "reward": lambda: shaped if penalty is None else shaped - penalty.sum(),
            "token_reward": lambda: self.token_reward(episodes, shaped, kl),
            "group": lambda: episodes.group,
            "length": lambda: episodes.length,
            "truncated": lambda: episodes.truncated,
            "baseline": lambda: self._baseline(episodes)[episodes.group],
            "step_reward": lambda: _given(episodes.step_reward, "rewards of steps"),
            "value": lambda: _given(episodes.tokens.get("value"), "values"),
            "cost_value": lambda: _given(episodes.tokens.get("cost_value"), "values of costs"),
            "log_probs": lambda: _given(episodes.tokens.get("old_log_probs"), "old log-probs"),
            "running": lambda: None if self.running is None else self.running.moments(),
        }

    def token_reward(self, episodes: Episodes, shaped: Tensor, kl: Ragged | None) -> Ragged:
        """Reward of each token: the penalty's negative, rewards of steps, and the response's reward at its last token.

        Args:
            episodes: of the rollout.
            shaped: reward of each response; nan counts as 0.
            kl: of :meth:`kl_of`.
        """
        sequence = _sequence(episodes)
        layout = Ragged(shaped.new_zeros(len(sequence)), sequence, len(shaped))
        penalty, steps = kl if self.kl.in_reward else None, episodes.step_reward
        steps = None if steps is None else steps.with_token(steps.token.nan_to_num(0.0))
        return token_rewards(shaped.nan_to_num(0.0), layout, kl=penalty, coef=float(self.kl.coef), step_reward=steps)

    def _baseline(self, episodes: Episodes) -> Tensor:
        """Reward of each prompt's greedy response, shaped as those of the samples are."""
        baseline: Tensor = _given(episodes.baseline, "a greedy baseline")
        if self.shaping is None:
            return baseline
        return self.shaping.shaped(baseline, torch.zeros_like(baseline, dtype=torch.bool))

    def _sum_of_terms(self, episodes: Episodes, kl: Ragged | None) -> Tensor:
        if not episodes.terms:
            raise ValueError(
                "method.credit.multi_reward=normalize_then_sum standardises each term of a reward: choose "
                "reward=composite"
            )
        total = torch.zeros_like(episodes.reward)
        for name, term in episodes.terms.items():
            credited = self.assigned(self.inputs(episodes, term, kl))["advantage"]
            total = total + self.weights.get(name, 1.0) * credited.nan_to_num(0.0)
        return (total - total.mean()) / (total.std() + 1e-4)

    def _per_token(self, value: Ragged | Tensor, episodes: Episodes) -> Ragged:
        if isinstance(value, Ragged):
            return value
        sequence = _sequence(episodes)
        return Ragged(value[sequence], sequence, len(episodes.reward))

    def _without_unrewarded(self, value: Ragged, episodes: Episodes) -> Ragged:
        """Numbers of tokens, 0 in responses without a reward: they teach nothing."""
        unrewarded = episodes.reward.isnan()
        if not self.needs & {"reward", "token_reward"} or not bool(unrewarded.any()):
            return value
        return value.with_token(value.token.masked_fill(unrewarded[value.sequence], 0.0))

    def _metrics(self, episodes: Episodes, kl: Ragged | None, advantage: Ragged) -> dict[str, float]:
        out = {
            "advantage/mean": float(advantage.token.mean()),
            "advantage/std": float(advantage.token.std(unbiased=False)),
        }
        if kl is not None and self.kl.in_reward:  # in the loss every step logs its distance
            out |= self._distance(episodes, kl)
        if self.kl.active:
            out["kl/coef"] = float(self.kl.coef)
        return out

    def _distance(self, episodes: Episodes, kl: Ragged) -> dict[str, float]:
        """KL to the reference, nats a response and a token; see ``distance``."""
        if self.kl.exact:
            distances = distance(kl)
        else:
            distances = distance(episodes.tokens["old_log_probs"], episodes.tokens["reference_log_probs"].token)
        return {name: float(value.mean()) for name, value in distances.items()}


def _sequence(episodes: Episodes) -> Tensor:
    """The response of each token."""
    return torch.repeat_interleave(torch.arange(len(episodes.length)), episodes.length)


def _given(value: Any, what: str) -> Any:
    if value is None:
        raise ValueError(f"the credit function asks for {what}, and this rollout has none")
    return value
