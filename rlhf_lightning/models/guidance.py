"""Guidance at decoding time: other models' logits, or a reward, decide on a policy's tokens; nothing is trained.

It is the config group ``guidance``. Log-probs of guided samples are those of the guided distribution, never the
policy's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from rlhf_lightning.models.decoding.generation import Guide, Mixed
from rlhf_lightning.models.decoding.reward_guidance import BlockChoice, PrefixValue, TokenReward
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import ReferenceKind
from rlhf_lightning.options import Count, NonNegative, Real

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.sources import ModelSource


class Guidance(ABC):
    """Guidance as a configuration describes it: everything besides the policy's distribution that decides on tokens."""

    name: ClassVar[str]  #: its file of ``conf/guidance``

    @property
    def has_log_probs(self) -> bool:
        """Return whether the distribution that is sampled from is known, so that samples carry its log-probs."""
        return True

    @abstractmethod
    def check(self, models: ModelBuilder) -> None:
        """Refuse what cannot guide a policy, before weights load.

        Args:
            models: the builder of the policy.

        Raises:
            ValueError: the message names the option.
        """

    @abstractmethod
    def guide(self, policy: Actor) -> Guide:
        """Guide that is ready to sample; models that it needs are loaded the first time.

        Args:
            policy: on the device that it samples on.
        """


@dataclass
class Contrast(Guidance):
    r"""Proxy-tuning: what training did to a small model is added to the logits of a large one.

    .. math:: z = z_{policy} + a\,(z_{tuned} - z_{untuned})

    Source: "Tuning Language Models by Proxy", arXiv:2401.08565; the same as emulated fine-tuning (EFT, "An Emulator for
    Fine-Tuning Large Language Models using Small Language Models", arXiv:2310.12962) at a = 1.

    Args:
        tuned: the small model after training.
        untuned: the small model before it.
        strength: a.
    """

    tuned: ModelSource
    untuned: ModelSource
    strength: Real = 1.0
    _loaded: list[Actor] = field(init=False, repr=False, default_factory=list)

    name: ClassVar[str] = "contrast"

    def check(self, models: ModelBuilder) -> None:
        """See :class:`Guidance`; the three vocabularies must be one."""
        for option in ("tuned", "untuned"):
            models.check_vocabulary(getattr(self, option), f"guidance.{option}")

    def guide(self, policy: Actor) -> Guide:
        """See :class:`Guidance`."""
        if not self._loaded:
            self._loaded = [_loaded(source) for source in (self.tuned, self.untuned)]
        tuned, untuned = (_placed(model, policy) for model in self._loaded)
        return Guide(1.0, (Mixed(tuned, self.strength), Mixed(untuned, -self.strength)))


@dataclass
class Realignment(Guidance):
    r"""DeRa: the strength of an alignment by KL-regularised training is chosen as responses are drawn.

    .. math:: z = \lambda\,z_{policy} + (1 - \lambda)\,z_{reference}

    If the policy was trained at a KL coefficient :math:`\beta`, this approximates one of :math:`\beta / \lambda`: 0 is
    the reference, 1 the policy, more goes beyond it.

    Source: "Decoding-time Realignment of Language Models", arXiv:2402.02992.

    Args:
        lam: lambda, at least 0.
        reference: the model before its alignment; None: the policy's model without its adapter.
    """

    lam: NonNegative = 0.5
    reference: ModelSource | None = None
    _loaded: Any = field(init=False, repr=False, default=None)

    name: ClassVar[str] = "dera"

    def check(self, models: ModelBuilder) -> None:
        """See :class:`Guidance`; there must be a reference, of the policy's vocabulary."""
        if self.reference is not None:
            models.check_vocabulary(self.reference, "guidance.reference")
        elif models.adapter is None:
            raise ValueError(
                "guidance.reference=null is the model without its adapter, and adapter=none: name the model before its "
                "alignment, model@guidance.reference=hub guidance.reference.name=..."
            )

    def guide(self, policy: Actor) -> Guide:
        """See :class:`Guidance`."""
        if self.reference is None:
            return Guide(self.lam, (Mixed(policy, 1 - self.lam, adapter=False),))
        if self._loaded is None:
            self._loaded = _loaded(self.reference)
        return Guide(self.lam, (Mixed(_placed(self._loaded, policy), 1 - self.lam),))


@dataclass
class ValueGuidance(Guidance):
    """Guidance by a reward, which scores responses that have not ended yet.

    Attributes:
        reward: a reward, or what makes it with ``tokenizer``.
        value: made of the reward; None before that.
    """

    reward: Any
    value: PrefixValue | None = field(init=False, repr=False, default=None)

    def check(self, models: ModelBuilder) -> None:
        """See :class:`Guidance`; there must be a reward."""
        if not self.reward:  # reward=none composes to an empty mapping
            raise ValueError(
                f"guidance={self.name} asks a reward, and guidance.reward is none: choose reward@guidance.reward=..., "
                "for example reward@guidance.reward=lexicon"
            )

    @property
    @abstractmethod
    def compared(self) -> int:
        """Candidates that the reward sees together."""

    @property
    def scorer(self) -> PrefixValue:
        """The value.

        Raises:
            ValueError: it was not made yet.
        """
        if self.value is None:
            raise ValueError(f"guidance={self.name} has no value yet: set its attribute value to a PrefixValue")
        return self.value


@dataclass
class RewardGuidance(ValueGuidance):
    r"""ARGS: a reward weighs the most likely tokens as each token is drawn.

    .. math:: z_v = \log p(v) + w\,r(x, y_{<t} v)

    Only the ``top_k`` most likely tokens at temperature 1 are drawn. Temperature and top-p apply to the guided
    distribution; temperature 0 is the greedy form of the paper. The reward is asked for ``top_k`` prefixes a token.

    Source: "ARGS: Alignment as Reward-Guided Search", arXiv:2402.01694.
    Differences: the defaults are ours.

    Args:
        reward: any reward that needs no column of the data.
        weight: w.
        top_k: tokens that are compared.
    """

    weight: NonNegative = 1.5
    top_k: Count = 10

    name: ClassVar[str] = "reward"

    @property
    def compared(self) -> int:
        """See :class:`ValueGuidance`."""
        return self.top_k

    def guide(self, policy: Actor) -> Guide:
        """See :class:`Guidance`."""
        return Guide(reward=TokenReward(self.scorer, self.weight, self.top_k))


@dataclass
class BlockGuidance(ValueGuidance):
    """Blockwise best-of-K: candidates are drawn a block of tokens long, the best one is continued K times, and so on.

    One candidate is sampling; blocks as long as a response are best-of-K. Each candidate draws from a stream of random
    numbers of its own, the first from that of the response. With more than one, samples carry no log-probs: nobody
    knows the distribution that they come from.

    Source: "Controlled Decoding from Language Models", arXiv:2310.17022.
    Differences: there the value is learned from rewards of whole responses; here it is the reward of the prefix. The
    defaults are ours.

    Args:
        reward: any reward that needs no column of the data.
        candidates: K.
        tokens: M, of a block.
    """

    candidates: Count = 4
    tokens: Count = 16

    name: ClassVar[str] = "blocks"

    @property
    def has_log_probs(self) -> bool:
        """See :class:`Guidance`."""
        return self.candidates == 1

    @property
    def compared(self) -> int:
        """See :class:`ValueGuidance`."""
        return self.candidates

    def guide(self, policy: Actor) -> Guide:
        """See :class:`Guidance`."""
        return Guide(reward=BlockChoice(self.scorer, self.candidates, self.tokens))


def _loaded(source: ModelSource) -> Actor:
    """Another model, which is never trained."""
    actor: Actor = ModelBuilder(source, None, ReferenceKind.NONE)().policy
    return actor.requires_grad_(False).eval()


@torch.no_grad()
def _placed(model: Actor, policy: Actor) -> Actor:
    """Another model on the policy's device, in its own dtype."""
    return model.to(next(policy.parameters()).device)
