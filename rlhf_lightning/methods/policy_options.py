"""Options of on-policy methods that belong together: the policy's loss, the critic's, and credit assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlhf_lightning.methods.mismatch import Mismatch
from rlhf_lightning.methods.shaping import RewardShaping
from rlhf_lightning.ops.aggregation import check_aggregation
from rlhf_lightning.options import NonNegative, OpenShare, Options, Positive, WholeNumber, value_object


@dataclass(frozen=True)
class PolicyLossOptions(Options):
    """Options that turn one number a token into the policy's loss of an optimiser step.

    Attributes:
        aggregation: how tokens are added up, see ``ops.aggregation``; ``local_token_mean`` depends on a step's cut.
        aggregation_length: the constant of ``seq_mean_token_sum_norm``, tokens.
        entropy_coef: weight of the entropy bonus, aggregated as the loss is.
        target_kl: the rest of a rollout's steps is skipped once the mean ``approx_kl`` of a step exceeds this, nats a
            token; None: never.
        temperature: divides the logits of what is trained on; None: ``rollout.temperature``.
        mismatch: weights of tokens whose engine computes other log-probs than the trainer: the options of
            :class:`~rlhf_lightning.methods.Mismatch` by name; None: none.

    Raises:
        ValueError: an option is unknown or out of its range.
    """

    node: ClassVar[str] = "method.policy_loss"

    aggregation: str = "token_mean"
    aggregation_length: Positive | None = None
    entropy_coef: NonNegative = 0.0
    target_kl: Positive | None = None
    temperature: Positive | None = None
    mismatch: Mismatch | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_aggregation(self.aggregation, self.aggregation_length)
        object.__setattr__(self, "mismatch", self.correction)

    @property
    def correction(self) -> Mismatch:
        """The correction of the engine's log-probs; one that corrects nothing where none was asked for."""
        return value_object(Mismatch, self.mismatch, f"{self.node}.mismatch")


@dataclass(frozen=True)
class ActorLossOptions(PolicyLossOptions):
    """Options of ``PolicyLossOptions``, and those of a policy that is trained with a critic.

    Attributes:
        max_ratio: a step whose mean ratio exceeds this does not train the policy, and no step may be cut then; None:
            none is left out.
        ptx_coef: weight of the likelihood of pretraining text that comes with each batch, as a mean over its tokens.
    """

    max_ratio: Positive | None = None
    ptx_coef: NonNegative = 0.0


@dataclass(frozen=True)
class ValueLossOptions(Options):
    """The critic's loss and how it is trained.

    Attributes:
        coef: weight of the value loss.
        clip: epsilon of the value loss, in units of the reward; None: no clip.
        critic_lr: learning rate of the critic; None: the policy's.
        critic_warmup: first optimiser steps that train the critic alone.

    Raises:
        ValueError: an option is out of its range.
    """

    node: ClassVar[str] = "method.value_loss"

    coef: NonNegative = 0.1
    clip: Positive | None = 0.2
    critic_lr: Positive | None = None
    critic_warmup: WholeNumber = 0


@dataclass(frozen=True)
class CreditOptions(Options):
    """Options of how rewards are prepared for the credit function.

    Attributes:
        shaping: applied to rewards before they are used; None: nothing.
        multi_reward: ``sum_then_normalize``, or ``normalize_then_sum``: each term of a composite reward gets its
            advantages, their weighted sum is standardised over the rollout (GDPO).
        reward_weights: weight of each term by name for ``normalize_then_sum``; a term that is not named has 1.
        running_decay: of the running mean of rewards that a credit function may ask for; None: a plain average.
        reward: the method's own reward, which the loop uses when no other is chosen.

    Raises:
        ValueError: an option is out of its range.
    """

    node: ClassVar[str] = "method.credit"

    shaping: RewardShaping | None = None
    multi_reward: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    reward_weights: Mapping[str, float] | None = None
    running_decay: OpenShare | None = None
    reward: Any = None
