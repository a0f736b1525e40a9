"""On-policy methods without a critic: the policy draws responses, rewards become advantages, tokens get gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.losses.options import needs
from rlhf_lightning.losses.policy_gradient import is_sequence_level
from rlhf_lightning.methods.assignment import Assignment
from rlhf_lightning.methods.base import DIAGNOSTIC, STATISTICS, AlignmentModule
from rlhf_lightning.methods.kl import KLPenalty, distance, scores_of_policy
from rlhf_lightning.methods.policy_options import CreditOptions, PolicyLossOptions
from rlhf_lightning.methods.tracking import Maxima, Means
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.ops.aggregation import aggregate
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
    SequencePredictions,
    StepOutput,
    TokenLoss,
)

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles.models import Models


@former_arguments("rlhf_lightning.methods.PolicyGradient")
class PolicyGradient(AlignmentModule[RolloutBatch]):
    """One number a response token from a loss of ``losses.policy_gradient``, advantages from a function of ``credit``.

    The loop draws a rollout, asks :meth:`scores` for the numbers of :attr:`required_scores`, gathers all of them from
    all processes and hands them to :meth:`credit`; then it yields :class:`~rlhf_lightning.types.RolloutBatch` es for
    the steps.

    Args:
        models: see ``AlignmentModule``.
        loss: of tokens; may ask for ``policy``, ``old`` and ``advantage``.
        optimizer: see ``AlignmentModule``.
        scheduler: see ``AlignmentModule``.
        advantage: a credit function or a partial of one.
        rollout: how samples are drawn and used; the options of ``RolloutOptions`` by name.
        kl: the penalty for leaving the reference; None: none.
        policy_loss: from a number a token to the loss of a step; the options of ``PolicyLossOptions`` by name.
        credit: what is done with rewards around the credit function; the options of ``CreditOptions`` by name.
        statistics: see ``AlignmentModule``.

    Raises:
        ValueError: an option is unknown, out of its range or does not go with another one.
    """

    kind: ClassVar[str] = "prompt"
    draws: ClassVar[bool] = True
    monitor: ClassVar[tuple[str, str]] = ("val/reward/mean", "max")
    provides: ClassVar[frozenset[str]] = frozenset({"policy", "old", "advantage", "reference"})

    assigner: ClassVar[type[Assignment]] = Assignment  #: what makes advantages of rewards
    policy_loss: PolicyLossOptions
    ptx_coef: float = 0.0  #: weight of demonstrations mixed into the rollouts

    stopped: Tensor  #: number of the rollout whose remaining steps are skipped, 0-dimensional; -1: none

    def __init__(
        self,
        models: Callable[..., Models],
        loss: Callable[..., TokenLoss],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        advantage: Callable[..., Any],
        rollout: RolloutOptions | Mapping[str, Any] | None = None,
        kl: KLPenalty | None = None,
        policy_loss: PolicyLossOptions | Mapping[str, Any] | None = None,
        credit: CreditOptions | Mapping[str, Any] | None = None,
        statistics: Sequence[str] = ("entropy",),
    ) -> None:
        penalty = kl or KLPenalty("none")
        super().__init__(
            models,
            loss,
            optimizer,
            scheduler,
            statistics=statistics,
            extra_needs=self.requires({"loss": loss, "kl": penalty}),
        )
        self.policy_loss = value_object(PolicyLossOptions, policy_loss, PolicyLossOptions.node)
        if is_sequence_level(loss) and self.policy_loss.aggregation != "seq_mean_token_mean":
            raise ValueError(
                f"{self.policy_loss.node}.aggregation={self.policy_loss.aggregation} would weigh responses by length, "
                "and the loss gives one number a response: set method.policy_loss.aggregation=seq_mean_token_mean"
            )
        _try_out(loss, self.needs)
        self.rollout = value_object(RolloutOptions, rollout, "method.rollout")
        self.kl, self.mismatch = penalty, self.policy_loss.correction
        self.temperature = self.policy_loss.temperature or self.rollout.temperature
        options = value_object(CreditOptions, credit, CreditOptions.node)
        self.default_reward = options.reward
        self.assignment = self.assigner(advantage, penalty, options)
        if "baseline" in self.assignment.needs and not self.rollout.greedy_baseline:
            raise ValueError(
                "the credit function compares with the greedy response: set method.rollout.greedy_baseline=true"
            )
        self.register_buffer("stopped", torch.tensor(-1))
        self._rollout = -1
        self._moved = Means()  # approx_kl of the step at hand
        self._highest = Maxima()

    @classmethod
    def requires(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """The loss's inputs, and the reference where there is a penalty for leaving it."""
        penalty = options.get("kl")
        return needs(options["loss"]) | ({"reference"} if penalty is not None and penalty.active else frozenset[str]())

    def _check(self, models: Callable[..., Models]) -> None:
        super()._check(models)
        if "reference" in self.needs and getattr(models, "reference", None) == "cached":
            raise ValueError(
                "reference=cached: nothing can be cached of responses that are not drawn yet; choose reference=frozen, "
                "adapter_off or auto"
            )

    # Between rollout and steps

    @property
    def needs_reward(self) -> bool:
        """True where credit assignment reads rewards, so that the loop must have a reward function."""
        return bool(self.assignment.needs & {"reward", "token_reward", "step_reward", "baseline"})

    @property
    def required_scores(self) -> frozenset[str]:
        """Names of what :meth:`scores` computes: old log-probs unless the only step computes them itself."""
        later = self.rollout.minibatches * self.rollout.inner_epochs > 1 and not self.mismatch.bypass
        charged, exact = self.kl.in_reward or self.kl.moves, self.kl.exact
        asked = (charged and not exact) or "log_probs" in self.assignment.needs
        wanted = {
            "old_log_probs": later or asked,
            "reference_log_probs": self.kl.active and not exact,
            "reference_kl": charged and exact,
        }
        return frozenset(name for name, yes in wanted.items() if yes)

    @torch.no_grad()
    def scores(self, batch: PackedBatch) -> dict[str, Tensor]:
        """The :attr:`required_scores`, one number a response token in the order of the batch; a collective call.

        It is the same forward pass as a step's, so that on the same micro-batches the first ratios are exactly 1.

        Args:
            batch: packed prompts and responses, on the module's device.
        """
        asked = self.required_scores
        out: dict[str, Tensor] = {}
        if asked & {"old_log_probs", "reference_kl"}:
            compared = self.compared(batch, "reference_kl" in asked)
            with evaluating(self.policy):
                policy: SequenceLogProbs = self.policy(batch, temperature=self.temperature, **compared)
            out |= scores_of_policy(policy, asked)
        if "reference_log_probs" in asked:
            out["reference_log_probs"] = self._live_reference(batch, temperature=self.temperature).token.float()
        return out

    def compared(self, batch: PackedBatch, wanted: bool) -> dict[str, Any]:
        """Options of the policy's forward pass that make it compute the exact KL to the reference.

        Args:
            batch: packed prompts and responses, whose tokens the reference predicts here.
            wanted: whether there is a use for it; False, or a penalty that is estimated: no options.
        """
        if not (wanted and self.kl.exact):
            return {}
        reference: SequencePredictions = self._live_reference(
            batch, temperature=self.temperature, inside=SequencePredictions.detached
        )
        return {"against": reference}

    def credit(self, episodes: Episodes) -> Credit:
        """Advantages of a whole rollout; moves the controller and running statistics, equally on every process.

        Args:
            episodes: of all processes, the same on each of them.
        """
        credit: Credit = self.assignment(episodes)
        return credit

    # A step

    def compute(self, batch: RolloutBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of a rollout."""
        policy = self.policy_log_probs(batch, **self.compared(batch, self.kl.in_loss))
        losses, named = self.objective(batch, policy)
        return self.output(batch, policy, losses, named)

    def policy_log_probs(self, batch: PackedBatch, **options: Any) -> SequenceLogProbs:
        """Log-probs of the policy at the temperature that it is trained at, and its entropy where it is asked for."""
        log_probs: SequenceLogProbs = self.policy(
            batch, statistics=self.wanted_statistics, temperature=self.temperature, **options
        )
        return log_probs

    @property
    def wanted_statistics(self) -> frozenset[str]:
        """Statistics of the policy's distributions that a step computes in addition to log-probs."""
        wanted = self.statistics if self.training else STATISTICS
        return wanted | {"entropy"} if self.policy_loss.entropy_coef else wanted

    def objective(self, batch: RolloutBatch, policy: SequenceLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss with KL term and entropy bonus, one number a response, and detached numbers to log.

        Args:
            batch: with advantages.
            policy: of :meth:`policy_log_probs`.
        """
        old, advantage = self.old_log_probs(batch, policy), self.advantages(batch)
        rollout = None if batch.rollout_log_probs is None else batch.ragged(batch.rollout_log_probs)
        weighted = self.mismatch(old, rollout, batch.host.engine_tokens)
        named = {f"mismatch/{name}": value for name, value in weighted.diagnostics.items()}
        denominator = self.mismatch.old(old, rollout)
        inputs = {"policy": policy, "old": denominator, "advantage": advantage}
        result: TokenLoss = self.loss(**{name: inputs[name] for name in self.needs & inputs.keys()})
        token = result.token * weighted.weight * self.mismatch.keep(old, rollout, policy, advantage.token)
        named |= result.diagnostics
        named["loss/policy"] = self.aggregated(policy.with_token(token)).detach()
        if self.kl.in_loss:
            penalty, logged = self._penalty(batch, policy, old)
            token = token + self.kl.coef.to(token) * penalty
            named |= {"kl/loss": penalty} | logged
        if self.policy_loss.entropy_coef:
            token = token - self.policy_loss.entropy_coef * policy.statistic("entropy").token
        return self.aggregated(policy.with_token(token)), named

    def _penalty(self, batch: RolloutBatch, policy: SequenceLogProbs, old: Ragged) -> tuple[Tensor, dict[str, Tensor]]:
        """Penalty of each token in the loss before the coefficient, and the KL to the reference as it is logged."""
        if (exact := policy.reference_kl) is not None:
            return exact, distance(policy.with_token(exact))
        reference = self._reference_numbers(batch)
        return self.kl.term(policy.token, reference, old.token), distance(policy, reference)

    def output(
        self, batch: RolloutBatch, policy: SequenceLogProbs, losses: Tensor, named: Mapping[str, Tensor]
    ) -> StepOutput:
        """Output of a forward pass from one number a response; a group's loss is the mean over its responses.

        Args:
            batch: of the losses.
            policy: of :meth:`policy_log_probs`.
            losses: one number a response, see :meth:`aggregated`.
            named: detached numbers to log under ``train/``; a name that ends in ``/max`` as the highest of the step.
        """
        group_loss = losses.view(len(batch), batch.slots).mean(1)
        # A micro-batch's own token mean has no part in the step's denominators.
        local = self.policy_loss.aggregation == "local_token_mean"
        loss = group_loss.mean() if local else self.scaled(group_loss, batch)
        values = {
            "group_loss": group_loss,
            "log_prob": policy.sum(),
            "length": policy.length,
            "entropy": policy.entropy,
            "top1": policy.top1,
            **{DIAGNOSTIC + name: value for name, value in named.items()},
        }
        return StepOutput(loss, {name: value.detach() for name, value in values.items() if value is not None})

    def aggregated(self, token: Ragged) -> Tensor:
        """One number a response, by ``policy_loss.aggregation``."""
        return aggregate(
            token.token,
            token.sequence,
            token.count,
            self.policy_loss.aggregation,
            step_length=token.step_length,
            length=self.policy_loss.aggregation_length,
        )

    def old_log_probs(self, batch: RolloutBatch, policy: Ragged) -> Ragged:
        """Log-probs of the rollout's policy; in the only step on a rollout the policy's, detached: the ratio is 1."""
        computed_here = batch.old_log_probs is None
        return policy.with_token(policy.token.detach() if computed_here else batch.old_log_probs)  # type: ignore[arg-type]

    def advantages(self, batch: RolloutBatch) -> Ragged:
        """Advantage of each response token.

        Raises:
            ValueError: the batch comes from somewhere else than a rollout.
        """
        if batch.advantage is None:
            raise ValueError(
                "the batch has no advantages: take batches from the rollout loader, or give a batch those of "
                "module.credit(episodes)"
            )
        return batch.ragged(batch.advantage)

    @torch.no_grad()
    def _reference_numbers(self, batch: RolloutBatch) -> Tensor:
        if batch.reference_log_probs is not None:
            return batch.reference_log_probs
        token: Tensor = self._live_reference(batch, temperature=self.temperature).token
        return token

    # Lightning's hooks

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> dict[str, Tensor]:
        """As in the base class; once the policy went too far on this rollout nothing is computed and nothing moves."""
        self._rollout = batch.rollout
        skipped = False
        if self.policy_loss.target_kl is not None:
            skipped = int(self.stopped) == batch.rollout
            self.track("train/early_stop", float(skipped))
        if not skipped:
            return super().training_step(batch, batch_idx)
        # Not None, which Lightning refuses on several processes. No weight gets a gradient of this loss, so the
        # optimiser leaves all of them, and its own state, as they are.
        return {"loss": torch.zeros((), device=self.device, requires_grad=True)}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """As in the base class; decides whether the rollout's remaining steps are skipped; a collective call.

        Here and not where the step is logged: callbacks that save at the end of a step must find the decision made.
        """
        super().on_before_optimizer_step(optimizer)
        moved = self._moved.pop(self._sum, self.device).get("approx_kl")
        if moved is not None and self.policy_loss.target_kl is not None and moved > self.policy_loss.target_kl:
            self.stopped.fill_(self._rollout)

    @torch.no_grad()
    def validation_step(self, batch: RolloutBatch, batch_idx: int) -> dict[str, Tensor]:
        """Reward, length, entropy and KL to the reference of the policy's samples for validation prompts."""
        policy = self.policy_log_probs(batch, **self.compared(batch, self.reference is not None))
        named = {"response/length": policy.length, "entropy": policy.statistic("entropy").token}
        if batch.score is not None:
            named["reward/mean"] = batch.score[~batch.score.isnan()]
        if batch.truncated is not None:
            named["response/truncated"] = batch.truncated.float()
        if policy.reference_kl is not None:
            named |= distance(policy.with_token(policy.reference_kl))
        elif self.reference is not None or batch.reference_log_probs is not None:
            named |= distance(policy, self._reference_numbers(batch))
        for name, value in named.items():
            self.track(f"val/{name}", value.float())
        return {"log_prob": policy.sum(), "length": policy.length}

    def _track_diagnostics(self, prefix: str, extras: dict[str, Tensor]) -> None:
        highest = {name for name in extras if name.startswith(DIAGNOSTIC) and name.endswith("/max")}
        super()._track_diagnostics(prefix, {name: value for name, value in extras.items() if name not in highest})
        for name in highest:
            self._highest.add(prefix + name.removeprefix(DIAGNOSTIC), extras[name].float())
        if self.policy_loss.target_kl is not None and prefix == "train/" and DIAGNOSTIC + "approx_kl" in extras:
            self._moved.add("approx_kl", extras[DIAGNOSTIC + "approx_kl"])

    def derived(self, prefix: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The highest numbers of the step."""
        return self._highest.pop(prefix, lambda values: self.trainer.strategy.reduce(values, reduce_op="max"))


def _try_out(loss: Callable[..., TokenLoss], wanted: frozenset[str]) -> None:
    """Call a loss once on a token, so that options which do not go together fail before any weight is loaded."""
    token = Ragged(torch.zeros(1), torch.zeros(1, dtype=torch.long), 1)
    if wanted <= {"policy", "old", "advantage", "reference"}:
        loss(**dict.fromkeys(wanted - {"reference"}, token))
