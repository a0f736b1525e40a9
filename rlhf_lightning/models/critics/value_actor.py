"""An actor with value heads: of states (V) and of actions (two Q heads and slowly moving copies of them).

A state is what was written so far, an action the next token. The heads stand on the last layer's hidden states. A Q
head has a value for every token of the vocabulary; the values of the tokens that were chosen come from rows of its
weight, and its log-softmax from the blockwise head, so no ``[tokens, vocabulary]`` matrix exists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.hidden_states.actors import log_probs_and_states
from rlhf_lightning.ops.log_probs import log_probs
from rlhf_lightning.options import Seed
from rlhf_lightning.types import ActionValues, PackedBatch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: Changes the scores (log-probs or logits) of the next token: (ids so far, scores) -> scores.
LogitsProcessor = Callable[[Tensor, Tensor], Tensor]


class MLPHead(nn.Module):
    """Two layers on hidden states: ``d -> width -> outputs`` with a ReLU between them, in float32.

    Args:
        size: d, of the hidden states.
        width: of the layer between.
        outputs: numbers a state.
    """

    def __init__(self, size: int, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(size, width), nn.Linear(width, outputs)

    def features(self, hidden: Tensor) -> Tensor:
        """Inputs of the last layer, ``[n, width]``, float32 also under autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.relu(F.linear(hidden.float(), self.first.weight.float(), self.first.bias.float()))

    def all(self, hidden: Tensor) -> Tensor:
        """Every output, ``[n, outputs]``."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(self.features(hidden), self.last.weight.float(), self.last.bias.float())

    def at(self, features: Tensor, output: Tensor) -> Tensor:
        """One output a state, ``[n]``: a row of the last layer each."""
        rows, bias = F.embedding(output, self.last.weight), self.last.bias[output]
        return (features * rows.float()).sum(-1) + bias.float()


class ValueActor(Actor):
    """A language model with a V head and two Q heads, each Q head with a copy that follows it slowly.

    The copies are buffers: saved with the policy, never trained, and whole on every process under FSDP2.

    Args:
        model: a transformers causal language model, or a PEFT model around one; the heads are trained in full.
        backend: see :class:`~rlhf_lightning.models.backbone.Backbone`.
        width: of the heads' inner layer, as a multiple of the hidden size (trlX: 2).
        seed: of the heads' weights.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        backend: Literal["auto", "packed", "padded"] = "auto",
        width: int = 2,
        seed: Seed = 0,
    ) -> None:
        super().__init__(model, backend=backend)
        vocabulary, size = self.base.get_output_embeddings().weight.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.value_head = MLPHead(size, width * size, 1)
            self.q_heads = nn.ModuleList(MLPHead(size, width * size, vocabulary) for _ in range(2))
        self.target_heads = nn.ModuleList(_as_buffers(head) for head in self.q_heads)

    def forward(
        self,
        batch: PackedBatch,
        *,
        values: bool = False,
        adapter: bool = True,
        statistics: frozenset[str] = frozenset(),
        **options: Any,
    ) -> Any:
        """Log-probs as of an :class:`~rlhf_lightning.models.actor.Actor`, and with ``values`` what the heads say.

        Args:
            batch: packed prompts and responses, on the model's device.
            values: whether to return a pair of log-probs and :class:`~rlhf_lightning.types.ActionValues`.
            adapter: False computes with the adapter disabled; the heads stay.
            statistics: see ``Actor``.
            options: of the log-probs without ``values``.
        """
        if not values:
            return super().forward(batch, adapter=adapter, statistics=statistics, **options)
        with self.adapter_switched(adapter):
            token, hidden = log_probs_and_states(self, batch, batch.source, batch.sequence, statistics)
            return token, self._values(hidden, batch.ids[batch.target])

    @property
    def _trained(self) -> list[MLPHead]:
        return cast("list[MLPHead]", list(self.q_heads))

    @property
    def _targets(self) -> list[MLPHead]:
        return cast("list[MLPHead]", list(self.target_heads))

    def _values(self, hidden: Tensor, action: Tensor) -> ActionValues:
        q, q_log_prob = [], []
        for head in self._trained:
            features = head.features(hidden)
            q.append(head.at(features, action))
            q_log_prob.append(log_probs(features, head.last.weight, action, head.last.bias).log_prob)
        with torch.no_grad():
            target = [head.at(head.features(hidden), action) for head in self._targets]
        value = self.value_head.all(hidden)[:, 0]
        return ActionValues(torch.stack(q), torch.stack(target), value, torch.stack(q_log_prob).float())

    @torch.no_grad()
    def sync_targets(self, rate: float) -> None:
        r"""Move the copies towards the Q heads: :math:`\bar\theta \leftarrow a\,\theta + (1 - a)\,\bar\theta`.

        Under FSDP2 a collective call: the heads' shards are gathered.

        Args:
            rate: a in (0, 1]; 1 copies.

        Raises:
            ValueError: ``rate`` is out of range.
        """
        if not 0 < rate <= 1:
            raise ValueError(f"target_rate={rate} must lie in (0, 1]")
        sources = dict(self.q_heads.named_parameters())
        for name, target in self.target_heads.named_buffers():
            source = sources[name]
            whole = source.full_tensor() if hasattr(source, "full_tensor") else source
            target.lerp_(whole.to(target), rate)

    @contextmanager
    def guided(self, beta: float, top_k: int) -> Iterator[LogitsProcessor]:
        r"""Decoding by value: a logits processor that works while this context is open.

        It takes :math:`\log\pi + \beta\,(\min_i \bar Q_i - V)` of every token in the place of :math:`\log\pi`, and
        leaves the ``top_k`` highest (0: all).
        """
        states: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            states[:] = [inputs[0][:, -1]]

        def processor(ids: Tensor, scores: Tensor) -> Tensor:
            hidden = states[0].to(self.value_head.last.weight.device)
            best = torch.stack([head.all(hidden) for head in self._targets]).amin(0)
            guided = scores.float().log_softmax(-1) + beta * (best - self.value_head.all(hidden))
            if not 0 < top_k < guided.shape[-1]:
                return guided
            least = guided.topk(top_k, dim=-1).values[:, -1:]
            return guided.masked_fill(guided < least, -torch.inf)

        handle = self.base.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            yield processor
        finally:
            handle.remove()


def _as_buffers(head: nn.Module) -> nn.Module:
    """A copy of a head whose weights are buffers."""
    copied = copy.deepcopy(head)
    for part in copied.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return copied
