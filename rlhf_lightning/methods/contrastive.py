"""Methods on hidden states of responses to the same instruction in two wordings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch.optim import Optimizer

from rlhf_lightning.methods.base import DIAGNOSTIC, STATISTICS, AlignmentModule
from rlhf_lightning.models.hidden_states.actors import Embedder, Pooling
from rlhf_lightning.types import MeasuredLoss, ParaphraseBatch, StepOutput

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles.models import Models


class Contrastive(AlignmentModule[ParaphraseBatch]):
    """One number a group from a loss of ``rlhf_lightning.losses.contrastive``.

    A loss may ask for ``policy`` (log-probs in both wordings), ``embedding`` (one hidden state a response) and
    ``present`` (whether a slot is filled).

    Args:
        models: see ``AlignmentModule``.
        loss: see ``AlignmentModule``.
        optimizer: see ``AlignmentModule``.
        scheduler: see ``AlignmentModule``.
        pooling: where a response's hidden state is read: ``last``, at its last token, so that it includes the
            response; ``last_prompt``, at the prompt's last token, which equal responses cannot give away.
        statistics: see ``AlignmentModule``.

    Raises:
        ValueError: an unknown pooling.
    """

    kind: ClassVar[str] = "paraphrase"
    provides: ClassVar[frozenset[str]] = frozenset({"policy", "embedding", "present"})
    actor = Embedder

    def __init__(
        self,
        models: Callable[..., Models],
        loss: Callable[..., MeasuredLoss],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        pooling: Pooling = "last",
        statistics: Sequence[str] = (),
    ) -> None:
        if pooling not in ("last", "last_prompt"):
            raise ValueError(f"method.pooling={pooling!r}; it can be last or last_prompt")
        super().__init__(models, loss, optimizer, scheduler, statistics=statistics)
        self.pooling: Pooling = pooling

    def compute(self, batch: ParaphraseBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of instructions."""
        statistics = self.statistics if self.training else STATISTICS
        policy, embedding = self.policy(batch, pooling=self.pooling, statistics=statistics)
        inputs = {"policy": batch.wordings(policy), "embedding": embedding, "present": batch.present}
        result: MeasuredLoss = self.loss(**{name: inputs[name] for name in self.needs})
        values = {
            "group_loss": result.loss,
            "log_prob": policy.sum(),
            "length": policy.length,
            "entropy": policy.entropy,
            "top1": policy.top1,
            **{DIAGNOSTIC + name: value for name, value in result.diagnostics.items()},
        }
        named = {name: value.detach() for name, value in values.items() if value is not None}
        return StepOutput(self.scaled(result.loss, batch), named)
