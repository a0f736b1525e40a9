"""An actor with a critic: what it says, and what every token of it is expected to bring.

A value belongs to the state that a token is chosen in: everything before it. Actor and critic compute in one
``forward``, so one root is sharded, and where the critic stands on the actor's trunk the states are made once.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import is_adapted
from rlhf_lightning.models.architectures import has_tested_parity
from rlhf_lightning.models.critics.parts import (
    Branch,
    CriticHead,
    adapter_active,
    add_critic_adapter,
    critic_head,
    separate_critic,
)
from rlhf_lightning.models.loading.heads import SavedHead
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.options import Seed
from rlhf_lightning.types import PackedBatch, SequenceLogProbs, SequencePredictions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel
    from transformers import PreTrainedModel

    from rlhf_lightning.models.adapters.lora import Adapter
    from rlhf_lightning.models.sources import ModelSource

CriticKind = Literal["separate", "shared", "hydra", "adapter"]
#: Name of the critic's adapter; with several values a number follows.
ADAPTER = "critic"


class ActorCritic(Actor):
    """A language model whose states also get values, from a critic of one of four kinds.

    ``separate``: a model of its own, twice the memory; InstructGPT, arXiv:2403.17031, TRL, OpenRLHF, MOSS and safe-rlhf
    start it from the reward model. ``shared``: a head on the policy's states (OpenAI's code for arXiv:1909.08593,
    LLaMA-Factory). ``hydra``: the policy's lower layers, and copies of its upper ones (trlX). ``adapter``: a LoRA
    adapter of its own on the base that the policy's adapter stands on.

    Everything of the critic is trained in full, but for what stands beside an adapter. It is in the checkpoint, not in
    a frozen reference and not in an export.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        backend: see :class:`~rlhf_lightning.models.backbone.Backbone`.
        kind: of the critic.
        outputs: values a state; PPO-Lagrangian has two critics, of reward and of cost.
        head: how the head starts: ``zeros`` (every value is 0), ``rsqrt`` or ``inverse`` (drawn as a reward model's),
            ``keep`` (the one that comes with ``source`` or ``adapter``), ``auto`` (``keep`` where there is one, else
            ``zeros``).
        source: weights of a separate critic, such as an exported reward model; None: a copy of the policy's. With
            several outputs one for each, or one for all.
        adapter: LoRA settings of a separate critic that has a source, or of the adapter kind, which may start from a
            saved one, such as a reward model's; None: no adapter, and the settings of the policy's.
        layers: upper layers of a hydra's critic.
        detach: values of a shared or hydra critic do not train the policy's layers.
        seed: of what is drawn.

    Raises:
        ValueError: an unknown kind or head, options that do not go together, or see
            :func:`~rlhf_lightning.models.critics.parts.separate_critic` and
            :class:`~rlhf_lightning.models.critics.parts.Branch`.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        backend: Literal["auto", "packed", "padded"] = "auto",
        kind: CriticKind = "separate",
        outputs: int = 1,
        head: CriticHead = "auto",
        source: ModelSource | Sequence[ModelSource] | None = None,
        adapter: Adapter | None = None,
        layers: int = 2,
        detach: bool = False,
        seed: Seed = 0,
    ) -> None:
        sources = _sources(source, outputs)
        given = kind == "adapter" and adapter is not None and adapter.path is not None
        _check(kind, head, adapted=is_adapted(model), sourced=source is not None, headed=given, detach=detach)
        super().__init__(model, backend=backend)
        self.kind, self.outputs, self.detach = kind, outputs, detach
        size = self.base.get_output_embeddings().weight.shape[1]
        if kind == "separate":
            made = [separate_critic(self, sources[i], head, adapter, seed + i) for i in range(outputs)]
            self.critics = nn.ModuleList(made)
            return
        if kind == "hydra":
            self.branches = nn.ModuleList(Branch(self.trunk, layers) for _ in range(outputs))
            size = cast("Branch", self.branches[0]).size
        saved: list[SavedHead | None] = [None] * outputs
        if kind == "adapter":
            saved = [add_critic_adapter(self.model, f"{ADAPTER}{i}", adapter, seed + i) for i in range(outputs)]
        self.value_heads = nn.ModuleList(critic_head(saved[i], size, head, seed + i) for i in range(outputs))

    def forward(
        self,
        batch: PackedBatch,
        *,
        values: bool = False,
        log_probs: bool = True,
        adapter: bool = True,
        temperature: float = 1.0,
        statistics: frozenset[str] = frozenset(),
        against: SequencePredictions | None = None,
        **options: Any,
    ) -> Any:
        """Log-probs as of an :class:`~rlhf_lightning.models.actor.Actor`, and with ``values`` what the critic expects.

        Args:
            batch: packed prompts and responses, on the model's device.
            values: whether to return a pair of log-probs and values.
            log_probs: with ``values``, whether to compute the log-probs; None is in their place otherwise.
            adapter: False computes with the policy's adapter disabled, and without values.
            temperature: see ``Actor``.
            statistics: see ``Actor``.
            against: see ``Actor``.
            options: of the log-probs without ``values``.

        Returns:
            Log-probs; with ``values`` a pair of log-probs and ``[outputs, response_tokens]``, float32.

        Raises:
            ValueError: the adapter kind in training with activation checkpointing.
        """
        asked: dict[str, Any] = {"temperature": temperature, "statistics": statistics, "against": against}
        if not values:
            return super().forward(batch, adapter=adapter, **asked, **options)
        if self.kind == "adapter" and self.training and self._checkpoints_activations():
            # Activations would be computed again in the backward pass, under whichever adapter is then switched on.
            raise ValueError(
                "method.critic.kind=adapter and model.gradient_checkpointing=true do not go together: choose "
                "kind=shared or kind=separate, or switch checkpointing off"
            )
        if self.kind in ("separate", "adapter"):
            predicted = super().forward(batch, **asked) if log_probs else None
            values_of_critics = self._separate(batch) if self.kind == "separate" else self._adapted(batch)
            return predicted, torch.stack(values_of_critics)
        return self._shared(batch, asked if log_probs else None)

    def _checkpoints_activations(self) -> bool:
        return any(getattr(part, "gradient_checkpointing", False) for part in self.base.modules())

    def _separate(self, batch: PackedBatch) -> list[Tensor]:
        critics = cast("list[Scorer]", list(self.critics))
        return [critic.normalized(critic(batch, at="source")) for critic in critics]

    def _adapted(self, batch: PackedBatch) -> list[Tensor]:
        made = []
        for i, head in enumerate(self.value_heads):
            with adapter_active(self.model, f"{ADAPTER}{i}"):
                made.append(head(self.hidden(batch, batch.source, batch.sequence))[:, 0])
        return made

    def _shared(
        self, batch: PackedBatch, asked: dict[str, Any] | None
    ) -> tuple[SequenceLogProbs | None, Float[Tensor, "outputs response_tokens"]]:
        """Values from the pass that makes the log-probs; a model of an unknown family needs a second one.

        Args:
            batch: packed prompts and responses.
            asked: options of the log-probs; None: there are none.
        """
        predicted: SequenceLogProbs | None = None
        if asked is not None and not has_tested_parity(self.base):
            predicted = super().forward(batch, **asked)
        hidden, states = self._states(batch)
        made = [head(state)[:, 0] for head, state in zip(self.value_heads, states, strict=True)]
        if asked is not None and predicted is None:
            predicted = self.log_probs_of(batch, hidden, **asked)
        return predicted, torch.stack(made)

    def _states(self, batch: PackedBatch) -> tuple[Tensor, list[Tensor]]:
        """The policy's states before each scored token, and those that each value is read from."""
        if self.kind == "shared":
            hidden = self.hidden(batch, batch.source, batch.sequence)
            return hidden, [hidden.detach() if self.detach else hidden] * self.outputs
        branches = cast("list[Branch]", list(self.branches))
        with branches[0].listening() as calls:
            hidden = self.hidden(batch, batch.source, batch.sequence)
        read = [branch(calls, detach=self.detach) for branch in branches]
        return hidden, [self.at(states, batch, batch.source, batch.sequence) for states in read]

    def policy_copy(self) -> Actor:
        """The policy alone: a reference needs no critic."""
        model = copy.deepcopy(self.model)
        if self.kind == "adapter":
            for i in range(self.outputs):
                model.delete_adapter(f"{ADAPTER}{i}")
        return Actor(model, backend=self.backend)

    def of_critic(self, name: str) -> bool:
        """Return whether a parameter, by its name in this module, is the critic's alone."""
        return not name.startswith("model.") or f".{ADAPTER}" in name


def _sources(source: ModelSource | Sequence[ModelSource] | None, outputs: int) -> list[ModelSource | None]:
    if outputs < 1:
        raise ValueError(f"method.critic.outputs={outputs} must be at least 1")
    if not isinstance(source, (list, tuple)):
        return [cast("ModelSource | None", source)] * outputs
    if len(source) != outputs:
        raise ValueError(f"method.critic.source names {len(source)} models for {outputs} critics: one each, or one")
    return list(source)


def _check(kind: str, head: str, *, adapted: bool, sourced: bool, headed: bool, detach: bool) -> None:
    if kind not in get_args(CriticKind) or head not in get_args(CriticHead):
        raise ValueError(
            f"method.critic.kind={kind!r} can be {', '.join(get_args(CriticKind))}, and head={head!r} "
            f"{', '.join(get_args(CriticHead))}"
        )
    if sourced and kind != "separate":
        raise ValueError(f"method.critic.source gives weights to a critic of its own: kind=separate, not kind={kind}")
    if head == "keep" and not (sourced or headed):
        raise ValueError(
            "method.critic.head=keep needs a head to keep: give a reward model as method.critic.source, or to "
            "kind=adapter its adapter (+adapter@method.critic.adapter=run)"
        )
    if kind == "adapter" and not adapted:
        raise ValueError("method.critic.kind=adapter stands beside the policy's adapter: adapter=lora")
    if detach and kind not in ("shared", "hydra"):
        raise ValueError(f"method.critic.detach=true is for kind=shared and kind=hydra; kind={kind} shares no layer")
