"""PPO: a policy, and a critic that estimates the return expected at each token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.credit.whitening import whiten
from rlhf_lightning.losses.critic import value_error
from rlhf_lightning.losses.options import refuse_cut
from rlhf_lightning.methods.assignment import Assignment
from rlhf_lightning.methods.kl import KLPenalty, scores_of_policy
from rlhf_lightning.methods.lagrangian import CostAssignment, CriticCreditOptions
from rlhf_lightning.methods.optimizers import decay_groups
from rlhf_lightning.methods.policy_gradient import PolicyGradient
from rlhf_lightning.methods.policy_options import ActorLossOptions, ValueLossOptions
from rlhf_lightning.models.critics.critic import ActorCritic
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.ops.exponent import bounded_exp
from rlhf_lightning.options import value_object
from rlhf_lightning.renamed import former_arguments
from rlhf_lightning.types import (
    Credit,
    Episodes,
    PackedBatch,
    Ragged,
    RolloutBatch,
    RolloutOptions,
    SequenceLogProbs,
    StepOutput,
    TokenLoss,
)

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles.models import Models

#: Outputs of the critic: field of the values at the rollout, and field of the returns it learns.
CRITICS = (("value", "returns"), ("cost_value", "cost_returns"))


@former_arguments("rlhf_lightning.methods.PPO")
class PPO(PolicyGradient):
    r"""Clipped policy and value losses on advantages from generalised advantage estimation.

    .. math:: L = L_\pi + c_v L_V - c_e H - c_{ptx}\,E\log\pi_\theta(\text{pretraining text})

    Policy and critic are trained by one optimiser with parameter groups of their own. The detailed options and where
    each comes from: ``docs/ppo_details.md``.

    Args:
        models: see ``PolicyGradient``; so are the other arguments that are not named here.
        loss: of the policy's tokens.
        optimizer: see ``AlignmentModule``; the critic's parameters are groups of their own.
        scheduler: see ``AlignmentModule``.
        advantage: a credit function that also gives ``returns``, such as ``credit.gae``.
        critic: the class ``models.ActorCritic``, or a partial with its options.
        value_loss: weight c_v and clip of the critic's loss, and how it is trained; the options of
            ``ValueLossOptions`` by name.
        rollout: see ``PolicyGradient``.
        kl: see ``PolicyGradient``.
        policy_loss: with c_e and c_ptx; the options of ``ActorLossOptions`` by name. ``aggregation`` is that of the
            value loss too.
        credit: the options of ``CriticCreditOptions`` by name.
        statistics: see ``AlignmentModule``.

    Raises:
        ValueError: an option is unknown, out of its range or does not go with another one.
    """

    assigner: ClassVar[type[Assignment]] = CostAssignment

    policy_loss: ActorLossOptions

    def __init__(
        self,
        models: Callable[..., Models],
        loss: Callable[..., TokenLoss],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        advantage: Callable[..., Any],
        critic: Callable[..., ActorCritic] = ActorCritic,
        value_loss: ValueLossOptions | Mapping[str, Any] | None = None,
        rollout: RolloutOptions | Mapping[str, Any] | None = None,
        kl: KLPenalty | None = None,
        policy_loss: ActorLossOptions | Mapping[str, Any] | None = None,
        credit: CriticCreditOptions | Mapping[str, Any] | None = None,
        statistics: Sequence[str] = ("entropy",),
    ) -> None:
        options = value_object(CriticCreditOptions, credit, CriticCreditOptions.node)
        super().__init__(
            models,
            loss,
            optimizer,
            scheduler,
            advantage=advantage,
            rollout=rollout,
            kl=kl,
            policy_loss=value_object(ActorLossOptions, policy_loss, ActorLossOptions.node),
            credit=options,
            statistics=statistics,
        )
        self.value_loss = value_object(ValueLossOptions, value_loss, ValueLossOptions.node)
        self.whiten, self.whiten_unbiased, self.advantage_clip = options.whiten, options.whiten_unbiased, options.clip
        self.ptx_coef = self.policy_loss.ptx_coef
        self.actor = functools.partial(critic, outputs=self.outputs)

    @property
    def outputs(self) -> int:
        """Values a token that the critic has: one of the reward, and one of the cost where there is one."""
        return 2 if "cost_value" in self.assignment.needs else 1

    @property
    def cost_terms(self) -> frozenset[str]:
        """Terms of the reward that are costs."""
        return self.assignment.cost_terms

    # The model

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of the policy, then those of the critic with its learning rate."""
        named = list(self.policy.named_parameters())
        groups = decay_groups(parameter for name, parameter in named if not self.policy.of_critic(name))
        critic = decay_groups(parameter for name, parameter in named if self.policy.of_critic(name))
        rate = {} if self.value_loss.critic_lr is None else {"lr": self.value_loss.critic_lr}
        return groups + [group | rate for group in critic]

    # Between rollout and steps

    @property
    def required_scores(self) -> frozenset[str]:
        """See ``PolicyGradient``; and the critic's values."""
        return super().required_scores | {name for name, _ in CRITICS[: self.outputs]}

    @torch.no_grad()
    def scores(self, batch: PackedBatch) -> dict[str, Tensor]:
        """See ``PolicyGradient``; log-probs and values come from one forward pass."""
        asked = self.required_scores
        out: dict[str, Tensor] = {}
        compared = self.compared(batch, "reference_kl" in asked)
        wanted = bool(asked & {"old_log_probs", "reference_kl"})
        with evaluating(self.policy):
            policy, values = self.policy(batch, values=True, log_probs=wanted, temperature=self.temperature, **compared)
        if policy is not None:
            out |= scores_of_policy(policy, asked)
        if "reference_log_probs" in asked:
            out["reference_log_probs"] = self._live_reference(batch, temperature=self.temperature).token.float()
        return out | {name: value for (name, _), value in zip(CRITICS, values.float(), strict=False)}

    @torch.no_grad()
    def credit(self, episodes: Episodes) -> Credit:
        """See ``PolicyGradient``; whitens over the rollout, and reports how well the critic predicts the returns."""
        credit = super().credit(episodes)
        for name, target in CRITICS[: self.outputs]:
            returns, value = credit.tokens[target].token, episodes.tokens[name].token
            credit.metrics |= {f"{target}/{key}": number for key, number in _moments(returns).items()}
            credit.metrics[f"{name}/explained_variance"] = _explained(value, returns)
        if self.whiten == "rollout":
            advantage = credit.tokens["advantage"]
            credit.tokens["advantage"] = advantage.with_token(whiten(advantage.token, unbiased=self.whiten_unbiased))
        return credit

    # A step

    def setup(self, stage: str) -> None:
        """See the base class.

        Raises:
            ValueError: ``max_ratio`` looks at a whole step, and the trainer cuts it.
        """
        super().setup(stage)
        if stage == "fit" and self.policy_loss.max_ratio is not None:
            micro_batches = self.trainer.accumulate_grad_batches * self.trainer.world_size
            what = f"method.policy_loss.max_ratio={self.policy_loss.max_ratio} looks at the mean ratio of a micro-batch"
            refuse_cut(what, micro_batches, "method.policy_loss.max_ratio=null")

    def compute(self, batch: RolloutBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of a rollout."""
        compared = self.compared(batch, self.kl.in_loss)
        policy, values = self.policy(
            batch, values=True, temperature=self.temperature, statistics=self.wanted_statistics, **compared
        )
        losses, named = self.objective(batch, policy)
        if self.policy_loss.max_ratio is not None:
            ratio = bounded_exp(policy.token.detach() - self.old_log_probs(batch, policy).token).mean()
            skipped = ratio > self.policy_loss.max_ratio
            losses, named["ratio/skipped"] = torch.where(skipped, 0.0, losses), skipped.float()
        for (name, target), value in zip(CRITICS, values, strict=False):
            error, diagnostics = self._value_loss(batch, name, target, batch.ragged(value))
            losses, named = losses + self.value_loss.coef * error, named | diagnostics
        output = self.output(batch, policy, losses, named)
        return self._with_pretraining(batch, output) if self.ptx_coef else output

    def _value_loss(
        self, batch: RolloutBatch, name: str, target: str, value: Ragged
    ) -> tuple[Tensor, dict[str, Tensor]]:
        old, returns = getattr(batch, name), getattr(batch, target)
        if old is None or returns is None:
            raise ValueError(
                f"the batch has no {name} or no {target}: take batches from the rollout loader, or give a batch those "
                "of module.scores and module.credit"
            )
        result = value_error(value, old, returns, clip=self.value_loss.clip)
        losses = self.aggregated(value.with_token(result.token))
        prefix = name.removesuffix("value")  # "" or "cost_"
        named = {prefix + key: number for key, number in result.diagnostics.items()}
        return losses, named | {f"loss/{name}": losses.detach()}

    def _with_pretraining(self, batch: RolloutBatch, output: StepOutput) -> StepOutput:
        text = batch.ptx
        if text is None:
            raise ValueError(
                f"method.policy_loss.ptx_coef={self.ptx_coef} mixes pretraining text in, and the batch brings none: "
                "give the data as data.ptx, or set method.policy_loss.ptx_coef=0"
            )
        log_probs: SequenceLogProbs = self.policy(text.stand_in or text)
        losses = (-log_probs.sum() / log_probs.step_length)[: len(text)]
        output.diagnostics["diagnostic/loss/ptx"] = losses.detach()
        output.loss = output.loss + self.ptx_coef * self.scaled(losses, text)
        return output

    def advantages(self, batch: RolloutBatch) -> Ragged:
        """See ``PolicyGradient``; whitened over the optimiser step and clipped as the options say."""
        advantage = super().advantages(batch)
        token = advantage.token
        if self.whiten == "minibatch":
            mean, std = batch.advantage_moments
            tokens = sum(batch.totals.slot_tokens)
            correction = tokens / (tokens - 1) if self.whiten_unbiased and tokens > 1 else 1.0
            token = (token - mean) / (std**2 * correction + 1e-8) ** 0.5
        if self.advantage_clip is not None:
            token = token.clamp(-self.advantage_clip, self.advantage_clip)
        return advantage.with_token(token)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the critic's learning rate; during the warm-up drop the policy's gradients."""
        super().on_before_optimizer_step(optimizer)
        self.track("train/lr/critic", float(optimizer.param_groups[-1]["lr"]))
        if self.trainer.global_step < self.value_loss.critic_warmup:
            for name, parameter in self.policy.named_parameters():
                if not self.policy.of_critic(name):
                    parameter.grad = None


def _moments(numbers: Tensor) -> dict[str, float]:
    return {"mean": float(numbers.mean()), "std": float(numbers.std(unbiased=False))}


def _explained(value: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 is a perfect prediction, 0 as good as a constant, below 0 worse than that."""
    return 1 - float((returns - value).var(unbiased=False) / returns.var(unbiased=False).clamp(min=1e-8))
