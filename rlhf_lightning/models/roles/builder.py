"""Builds the models of a run: weights, the adapter on them, the reference, earlier policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, cast

import torch

from rlhf_lightning.models import shares
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Adapter, Lora
from rlhf_lightning.models.adapters.start import AdapterStart, adapter_start, expected_start
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.buffers import keep_float32_buffers
from rlhf_lightning.models.hidden_states.steering import Steerable
from rlhf_lightning.models.loading.vocabulary import align_with_tokenizer, difference, needs_rows
from rlhf_lightning.models.modes import compile_layers, disable_dropout, set_gradient_checkpointing
from rlhf_lightning.models.roles.earlier import AdapterCopy, Earlier, check_shapes, without_start
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.roles.reference import Cached, FrozenCopy, Reference, ReferenceKind, Teacher, initial_policy
from rlhf_lightning.models.sources import Execution, ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class ModelBuilder:
    """Loads the models of a run; refuses combinations that cannot work before it loads anything.

    Args:
        source: where the weights come from.
        adapter: what makes few parameters trainable; None trains all of them.
        reference: what the policy is compared with; ``auto`` is ``adapter_off`` where switching the adapter off gives
            the initial policy, which is found out once the weights are loaded, else ``frozen``.
        backend: how a batch is run. This and the following are options of the source
            (:class:`~rlhf_lightning.models.sources.Execution`); what is given here wins.
        dropout: keep the model's own dropout.
        gradient_checkpointing: recompute activations in the backward pass.
        compile: torch.compile the decoder layers.
        teacher: where the weights of ``reference=teacher`` come from.
        start: puts the weights of another run into the new policy, before the reference is made of it.
        earlier: policies of earlier rounds that something asks for; None: nothing does.

    Raises:
        ValueError: a combination that cannot work, naming the options to change.
    """

    source: ModelSource
    adapter: Adapter | None = None
    reference: ReferenceKind | str = ReferenceKind.FROZEN
    backend: Literal["auto", "packed", "padded"] | None = None
    dropout: bool | None = None
    gradient_checkpointing: bool | None = None
    compile: bool | None = None
    teacher: ModelSource | None = None
    start: Callable[[Backbone, AdapterStart | None], None] | None = None
    earlier: Earlier | None = None

    def __post_init__(self) -> None:
        kinds = [kind.value for kind in ReferenceKind]
        if self.reference not in kinds:
            raise ValueError(f"reference={self.reference!r}; it can be {', '.join(kinds)}")
        self.reference = ReferenceKind(self.reference)
        self.adapter = self.adapter or None  # adapter=none composes to an empty mapping
        for option in fields(Execution):
            if getattr(self, option.name) is None:
                setattr(self, option.name, getattr(self.source, option.name, option.default))
        if self.reference is ReferenceKind.ADAPTER_OFF and self.adapter is None:
            raise ValueError("reference=adapter_off needs an adapter: adapter=lora, or choose reference=frozen")
        if (self.reference is ReferenceKind.TEACHER) != (self.teacher is not None):
            raise ValueError("reference=teacher goes with the teacher's model: model@reference.source=...")
        for source in (self.source, self.teacher):
            if isinstance(source, Steerable):
                source.check_steering(source.name, source.sizes)
        if self.reference is ReferenceKind.AUTO and self.adapter is None:
            self.reference = ReferenceKind.FROZEN
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, read once; needs no weights."""
        if self._tokenizer is None:
            self._tokenizer = self.source.tokenizer()
        return self._tokenizer

    def __call__(self, actor: Callable[..., Backbone] = Actor) -> Models:
        """Load the weights and give every role its model.

        Args:
            actor: what stands around the transformers model and is trained, called with the model (or the PEFT model
                around it) and ``backend``: an ``Actor``, or a ``Scorer`` for a reward model.

        Raises:
            ValueError: ``reference=adapter_off``, and the policy without its adapter is not the initial policy.
        """
        self.check_teacher()
        if shares.asked():
            try:
                self._check_shares()
                return self._models(actor)
            except shares.Whole as reason:
                shares.log_whole(self.source.name, reason)
        with shares.reading_whole():
            return self._models(actor)

    def _check_shares(self) -> None:
        """Refuse to build models without weights where something looks at weights before they are sharded.

        Raises:
            Whole: something does.
        """
        if self.start is not None:
            raise shares.Whole("the weights of another run are put into it")
        if self.adapter is not None:
            made_of = self.adapter.reads_base() if isinstance(self.adapter, Lora) else type(self.adapter).__name__
            if made_of is not None:
                raise shares.Whole(f"{made_of} is made of its weights")

    def _models(self, actor: Callable[..., Backbone]) -> Models:
        tokenizer = self.tokenizer()
        policy = self._policy(tokenizer, actor)
        parent = self._parent(policy, tokenizer, actor)
        if self.start is not None:
            self.start(policy, None if self.adapter is None else adapter_start(policy))
        start = None
        if self.adapter is not None:
            start = expected_start(policy) if shares.unread(policy) else adapter_start(policy)
        reference = self._reference(policy, start)
        if self.gradient_checkpointing:
            for part in [part for part in policy.modules() if isinstance(part, Backbone)]:  # a critic is one as well
                set_gradient_checkpointing(part.base, True)
        if self.compile:
            compile_layers(policy)
            if isinstance(reference, FrozenCopy):
                compile_layers(reference.actor)
        earlier = {} if self.earlier is None else self.earlier.models(policy, start, reference, parent)
        return Models(policy, reference, tokenizer, start, earlier)

    def _policy(self, tokenizer: PreTrainedTokenizerBase, actor: Callable[..., Backbone]) -> Backbone:
        quantization = None
        if self.adapter is not None and self.adapter.quantize is not None:
            quantization = self.adapter.quantization(_named_dtype(getattr(self.source, "dtype", "float32")))
        model = self.source.load(quantization)
        if shares.unread(model) and needs_rows(model, tokenizer):
            raise shares.Whole("its tokenizer has tokens that the model gets rows for")
        align_with_tokenizer(model, tokenizer)
        keep_float32_buffers(model)
        if not self.dropout:
            disable_dropout(model)
        adapted = model if self.adapter is None else self.adapter.apply(model)
        policy = actor(adapted, backend=self.backend or "auto")
        # Lightning's true half precision casts what is loaded here once all is loaded; the start is what comes of it.
        dtype = torch.get_default_dtype()
        policy = policy if dtype == torch.float32 else policy.to(dtype)
        shares.check_readable(policy)
        return policy

    def check_teacher(self) -> None:
        """Compare the vocabularies of teacher and policy; reads tokenizers, no weights.

        Raises:
            ValueError: they differ.
        """
        if self.teacher is not None and (differing := self._differing(self.teacher)):
            raise ValueError(
                f"the teacher {self.teacher.name} {differing}. Distillation compares distributions token by token: "
                "choose a teacher of the same family with model@reference.source=..."
            )

    def check_parent(self) -> None:
        """Compare the vocabularies of the policy and of what it was trained from; reads tokenizers, no weights.

        Raises:
            ValueError: they differ.
        """
        parent = None if self.earlier is None else self.earlier.parent
        if parent is not None and not isinstance(parent, str) and (differing := self._differing(parent)):
            raise ValueError(
                f"rounds.parent={parent.name} {differing}: name the model that the policy was trained from"
            )

    def check_vocabulary(self, other: ModelSource, option: str) -> None:
        """Compare the vocabulary of a model that is decoded beside the policy; reads tokenizers, no weights.

        Args:
            other: where it comes from.
            option: that names it.

        Raises:
            ValueError: the vocabularies differ.
        """
        if differing := self._differing(other):
            raise ValueError(f"{option} {differing}. Logits are added token by token: choose one of the same family")

    def _differing(self, other: ModelSource) -> str | None:
        """Difference between another model's vocabulary and the policy's; None without one."""
        return difference(other.tokenizer(), self.tokenizer(), self.source.name)

    def _parent(
        self, policy: Backbone, tokenizer: PreTrainedTokenizerBase, actor: Callable[..., Backbone]
    ) -> Reference | AdapterCopy | None:
        """Source of the model that the policy was trained from, where a role asks for it."""
        if self.earlier is None or self.earlier.parent is None:
            return None
        parent = self.earlier.parent
        if isinstance(parent, str):  # the run's own model
            return without_start(policy, adapted=self.adapter is not None, replaced=self.start is not None)
        loader = replace(
            self, source=parent, adapter=None, teacher=None, start=None, earlier=None, reference=ReferenceKind.NONE
        )
        copy = FrozenCopy(loader._policy(tokenizer, actor))
        if self.adapter is None:
            check_shapes(copy, policy, parent.name)
        return copy

    def _teacher(self, actor: Callable[..., Backbone]) -> Teacher:
        assert self.teacher is not None
        model = self.teacher.load()
        keep_float32_buffers(model)
        disable_dropout(model)
        return Teacher(actor(model, backend=getattr(self.teacher, "backend", "auto")))

    def _reference(self, policy: Backbone, start: AdapterStart | None) -> Reference | None:
        kind = ReferenceKind(self.reference)
        if kind is ReferenceKind.NONE:
            return None
        if kind is ReferenceKind.CACHED:
            return Cached()
        if kind is ReferenceKind.TEACHER:
            return self._teacher(type(policy))
        return initial_policy(policy, start, kind)


def _named_dtype(name: str) -> torch.dtype:
    return torch.float32 if name == "auto" else cast("torch.dtype", getattr(torch, name))
