"""Results of losses and methods."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass
class PreferenceLoss:
    """Result of a preference loss: one number a pair, and the detached implicit rewards behind it."""

    loss: Float[Tensor, " pairs"]
    chosen_reward: Float[Tensor, " pairs"]
    rejected_reward: Float[Tensor, " pairs"]
    #: numbers to fold into the running statistics that the loss asked for (``running``), detached
    observed: Float[Tensor, " observed"] | None = None
    #: further detached per-pair (or scalar) diagnostics by name, logged as ``train/<name>``
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class GroupLoss:
    """Result of a loss on labelled or ranked responses: one number a group, and the policy's reward of each response.

    A group is one labelled response or one ranked list; ``reward`` is meaningless in an empty slot.
    """

    loss: Float[Tensor, " groups"]
    reward: Float[Tensor, " responses"]  #: implicit reward or score of each response, detached
    #: numbers to fold into the running statistics that the loss asked for (``running``), detached
    observed: Float[Tensor, " observed"] | None = None
    #: further detached numbers by name, of any number (it may differ from batch to batch), logged as ``train/<name>``
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class MeasuredLoss:
    """Result of a loss without rewards: numbers to minimise, and diagnostics to log."""

    loss: Float[Tensor, " groups"]
    #: further detached numbers by name, of any number, logged as ``train/<name>``
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class TokenLoss:
    """Result of a policy-gradient loss: one number a scored token, aggregated as the method says."""

    token: Float[Tensor, " response_tokens"]
    #: further detached numbers by name, of any number, logged as ``train/<name>``
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Weighted:
    """Importance weights of tokens that another program drew than the one that trains on them, detached."""

    weight: Float[Tensor, " response_tokens"]  #: multiplies the policy loss of each token
    #: numbers by name, of any number, logged as ``train/mismatch/<name>`` (their mean; of ``<name>/max`` the largest);
    #: empty where the engine gave no log-probs
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class StepOutput:
    """Result of ``AlignmentModule.forward``: a scalar to differentiate and detached diagnostics."""

    loss: Float[Tensor, ""]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    def emptied(self) -> StepOutput:
        """The output of a micro-batch without groups: a loss of zero, whose gradients are zeros, and no numbers."""
        return StepOutput(0 * self.loss, {name: value.reshape(-1)[:0] for name, value in self.diagnostics.items()})
