"""Interface that the loop needs of the method that it trains; methods are checked against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rlhf_lightning.types.batches import PackedBatch
from rlhf_lightning.types.rollouts import Credit, Episodes, RolloutOptions


class Trained(Protocol):
    """A module whose policy draws responses while it is trained, whatever it learns from them."""

    needs: frozenset[str]  #: inputs of its loss
    loss: Any  #: the loss, a declared function or a partial of one
    policy: Any  #: the actor that is trained; None before its weights are loaded
    reference: Any  #: the model that its loss compares with; None: there is none
    tokenizer: Any
    earlier: dict[str, Any]  #: models that rewards name by role, other than the policy

    @property
    def kind(self) -> str:
        """Kind of data of its batches."""
        ...

    @property
    def draws(self) -> bool:
        """Return whether it learns from rollouts of its policy by itself."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the policy."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Every part of it."""
        ...

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and value of every trainable parameter of the policy."""
        ...

    def placed_reference(self) -> Any:
        """The reference on the policy's device; None where there is none."""
        ...

    def track(self, name: str, values: Tensor | float) -> None:
        """Take numbers into the mean that is logged as ``name``."""
        ...


class CreditRule(Protocol):
    """Rule that turns rewards into advantages, as far as a configuration is checked before anything is drawn."""

    needs: frozenset[str]  #: inputs of the credit function
    separate: bool  #: whether each term of a reward gets advantages of its own
    weights: Mapping[str, float]  #: of the terms' advantages, by name

    @property
    def advantage(self) -> Callable[..., Any]:
        """The credit function."""
        ...

    @property
    def cost_terms(self) -> frozenset[str]:
        """Terms of the reward that are costs which the method limits."""
        ...


@runtime_checkable
class EngineCorrection(Protocol):
    """Correction for samples of another distribution than the policy's, as it is checked before anything is drawn."""

    @property
    def needs_rollout(self) -> bool:
        """Return whether it reads the log-probs that samples were drawn with."""
        ...


class Rolled(Trained, Protocol):
    """A method that learns from rollouts through credit assignment."""

    rollout: RolloutOptions  #: how responses are drawn and used
    temperature: float  #: divides the logits of what is trained on
    assignment: CreditRule
    default_reward: Any  #: the reward where no other is chosen; None: there is none
    ptx_coef: float  #: weight of demonstrations beside the rollouts; 0: they have no part in the loss

    @property
    def mismatch(self) -> EngineCorrection:
        """The correction of samples that another distribution than the policy's drew."""
        ...

    @property
    def needs_reward(self) -> bool:
        """Return whether credit assignment reads rewards, so that the loop must have a reward function."""
        ...

    @property
    def required_scores(self) -> frozenset[str]:
        """Names of the numbers that :meth:`scores` computes of a rollout; empty: the loop does not call it."""
        ...

    def scores(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Numbers of every response token by name, in the order of the batch; a collective call."""
        ...

    def credit(self, episodes: Episodes) -> Credit:
        """Advantages of a whole rollout, equally on every process."""
        ...
