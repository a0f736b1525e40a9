"""Who is who in a run: the policy that is trained and the reference it is held against.

A reference is named, never guessed. ``frozen`` is a second copy of the weights, ``adapter_off`` the policy itself
without its adapter (no second copy), ``cached`` numbers that were computed before training (no model at all), ``none``
no reference. On the same weights the first three give the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

import torch
from torch import nn
from transformers import AttentionInterface

from rlhf_lightning.models import attention
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters import Adapter, is_adapted
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.buffers import keep_float32_buffers
from rlhf_lightning.models.naming import ADDED_ROWS
from rlhf_lightning.models.sharding import decoder_layers, reshard, shard_actor
from rlhf_lightning.models.sources import Execution, ModelSource
from rlhf_lightning.types import PackedBatch, SequenceLogProbs

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class ReferenceKind(StrEnum):
    """What the policy's log-probs are compared with."""

    FROZEN = "frozen"
    ADAPTER_OFF = "adapter_off"
    CACHED = "cached"
    TEACHER = "teacher"
    NONE = "none"


class Reference(Protocol):
    """Log-probs of what the policy is compared with; never has gradients."""

    kind: ReferenceKind
    refreshed: bool  #: whether its weights changed after loading, so that they belong into checkpoints

    def __call__(self, batch: PackedBatch, **options: Any) -> Any:
        """Log-probability of every scored token; or what the options of the actor's ``forward`` ask for."""
        ...


class FrozenCopy(nn.Module):
    """The policy's weights as they were, or as they were last refreshed.

    Always in evaluation mode, whatever its owner is set to.

    Args:
        actor: the copy; see :meth:`of`.
    """

    kind = ReferenceKind.FROZEN

    def __init__(self, actor: Backbone) -> None:
        super().__init__()
        # Read before freezing: what training never touches never needs refreshing.
        self._trained = [name for name, parameter in actor.named_parameters() if parameter.requires_grad]
        self.actor = actor.requires_grad_(False).eval()
        self.refreshed = False

    @classmethod
    def of(cls, policy: Backbone) -> FrozenCopy:
        """A frozen copy of the policy as it is now, adapter included."""
        return cls(policy.policy_copy())

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: PackedBatch, **options: Any) -> Any:
        """Log-probability of every scored token under the copy, or what the options of its ``forward`` ask for."""
        return self.actor(batch, **options)

    @torch.no_grad()
    def refresh(self, policy: nn.Module, weight: float = 1.0) -> None:
        r"""Move the reference towards the policy: :math:`\theta_{ref} \leftarrow w\,\theta + (1 - w)\,\theta_{ref}`.

        TR-DPO (arXiv:2404.09656) eq. 1-2; an exponential moving average is this after every step with a small weight.
        The mix is computed in float32 and rounded to the weights' dtype. Works on shards, without communication.

        Args:
            policy: the actor that this reference was copied from.
            weight: w in (0, 1]; 1 is a hard update, that is, a copy.

        Raises:
            ValueError: ``weight`` is out of range.
        """
        if not 0 < weight <= 1:
            raise ValueError(f"the weight of a reference update is {weight}; it must be in (0, 1]")
        reshard(policy)
        reshard(self.actor)
        source, target = dict(policy.named_parameters()), dict(self.actor.named_parameters())
        for name in self._trained:
            mine, theirs = target[name], source[name].to(dtype=target[name].dtype)
            mine.copy_(theirs if weight == 1 else torch.lerp(mine.float(), source[name].float(), weight))
        self.refreshed = True


class Teacher(FrozenCopy):
    """Another model of the same vocabulary, which never changes.

    Args:
        actor: around the other model's weights.
    """

    kind = ReferenceKind.TEACHER

    def refresh(self, policy: nn.Module, weight: float = 1.0) -> None:
        """Refuse: the policy's weights are not the teacher's.

        Raises:
            ValueError: always.
        """
        raise ValueError("reference=teacher is another model and cannot follow the policy: choose reference=frozen")


class AdapterDisabled:
    """The policy without its adapter: a reference that costs no memory and can never change.

    Args:
        policy: an actor whose model has an adapter.
    """

    kind = ReferenceKind.ADAPTER_OFF
    refreshed = False

    def __init__(self, policy: Backbone) -> None:
        if not is_adapted(policy.model):
            raise ValueError("reference=adapter_off needs an adapter: adapter=lora, or choose reference=frozen")
        self.policy = policy

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, **options: Any) -> Any:
        """Log-probability of every scored token under the base model, without dropout; or what the options ask for."""
        with evaluating(self.policy):
            return self.policy(batch, adapter=False, **options)


class Cached:
    """Log-probs that came with the batch, computed before training and stored by content."""

    kind = ReferenceKind.CACHED
    refreshed = False

    def __call__(self, batch: PackedBatch, **options: Any) -> SequenceLogProbs:
        """The batch's own reference log-probs.

        Raises:
            ValueError: the batch has none, or something else was asked for.
        """
        if options:
            raise ValueError(f"reference=cached holds log-probs only, not {sorted(options)}: choose reference=frozen")
        if batch.reference_log_probs is None:
            raise ValueError(
                "reference=cached, but this batch carries no reference log-probs: fill the cache before training "
                "(rlhf train does so) and give the data module its reference_store, or choose reference=frozen"
            )
        ragged = batch.ragged(batch.reference_log_probs)
        return SequenceLogProbs(ragged.token, ragged.sequence, ragged.count, ragged.mean_length)


@dataclass
class Models:
    """The models of a run, by role."""

    policy: Any  #: what is trained: an Actor, or another Backbone that a method asks for
    reference: Reference | None
    tokenizer: PreTrainedTokenizerBase


@dataclass
class ModelBuilder:
    """Loads the models of a run; refuses combinations that cannot work before it loads anything.

    Args:
        source: where the weights come from.
        adapter: what makes few parameters trainable; None trains all of them.
        reference: what the policy is compared with.
        backend: how a batch is run. This and the following are options of the source
            (:class:`~rlhf_lightning.models.sources.Execution`); what is given here wins.
        dropout: keep the model's own dropout.
        gradient_checkpointing: recompute activations in the backward pass.
        compile: torch.compile the decoder layers.
        teacher: where the weights of ``reference=teacher`` come from.

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
        if self.reference is ReferenceKind.FROZEN and self.adapter is not None:
            log.info("reference=frozen holds the weights twice; with an adapter reference=adapter_off does not")
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
        """
        tokenizer = self.tokenizer()
        self.check_teacher()
        policy = self._policy(tokenizer, actor)
        reference = self._reference(policy)
        if self.gradient_checkpointing:
            for part in [part for part in policy.modules() if isinstance(part, Backbone)]:  # a critic is one as well
                set_gradient_checkpointing(part.base, True)
        if self.compile:
            compile_layers(policy)
            if isinstance(reference, FrozenCopy):
                compile_layers(reference.actor)
        return Models(policy, reference, tokenizer)

    def _policy(self, tokenizer: PreTrainedTokenizerBase, actor: Callable[..., Backbone]) -> Backbone:
        quantization = None
        if self.adapter is not None and self.adapter.quantize is not None:
            quantization = self.adapter.quantization(_named_dtype(getattr(self.source, "dtype", "float32")))
        model = self.source.load(quantization)
        align_with_tokenizer(model, tokenizer)
        keep_float32_buffers(model)
        if not self.dropout:
            disable_dropout(model)
        adapted = model if self.adapter is None else self.adapter.apply(model)
        return actor(adapted, backend=self.backend or "auto")

    def check_teacher(self) -> None:
        """Compare the vocabularies of teacher and policy; reads tokenizers, no weights.

        Raises:
            ValueError: they differ.
        """
        if self.teacher is None:
            return
        mine, theirs = self.tokenizer().get_vocab(), self.teacher.tokenizer().get_vocab()
        if mine == theirs:
            return
        names = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
        raise ValueError(
            f"the teacher {self.teacher.name} has another vocabulary than {self.source.name}: {len(theirs)} tokens and "
            f"{len(mine)}, {len(names)} of them differ, for example {names[0]!r}. Distillation compares distributions "
            "token by token: choose a teacher of the same family with model@reference.source=..."
        )

    def _teacher(self, actor: Callable[..., Backbone]) -> Teacher:
        assert self.teacher is not None
        model = self.teacher.load()
        keep_float32_buffers(model)
        disable_dropout(model)
        return Teacher(actor(model, backend=getattr(self.teacher, "backend", "auto")))

    def _reference(self, policy: Backbone) -> Reference | None:
        makers: dict[str, Callable[[], Reference | None]] = {
            ReferenceKind.FROZEN: lambda: FrozenCopy.of(policy),
            ReferenceKind.ADAPTER_OFF: lambda: AdapterDisabled(policy),
            ReferenceKind.CACHED: Cached,
            ReferenceKind.TEACHER: lambda: self._teacher(type(policy)),
            ReferenceKind.NONE: lambda: None,
        }
        return makers[self.reference]()


def shard(models: Models, mesh: DeviceMesh, *, cpu_offload: bool = False) -> None:
    """Shard the policy and, separately, a frozen reference with FSDP2, in place.

    Args:
        models: as built, with the same weights in every process.
        mesh: the data-parallel processes, one dimension.
        cpu_offload: keep shards and optimiser state in host memory.

    Raises:
        ValueError: some weights are quantised.
    """
    shard_actor(models.policy, mesh, cpu_offload=cpu_offload)
    if isinstance(models.reference, FrozenCopy):
        shard_actor(models.reference.actor, mesh, cpu_offload=cpu_offload)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part has the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def align_with_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model its tokenizer's special tokens, and give it rows for tokens that were added.

    Generation then stops at the tokenizer's EOS as well as at the model's own ends (Llama 3 has several).
    """
    rows = cast("nn.Embedding", model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        setattr(model, ADDED_ROWS, range(rows, len(tokenizer)))
    generation = cast("Any", getattr(model, "generation_config", None))
    model.config.pad_token_id = tokenizer.pad_token_id
    if generation is None:  # a reward model
        return
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    ends = [tokenizer.eos_token_id, *(end for end in ends if end not in (None, tokenizer.eos_token_id))]
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    generation.pad_token_id = tokenizer.pad_token_id


def disable_dropout(model: nn.Module) -> None:
    """Switch off everything in a model that is random in training mode.

    Dropout modules, the probabilities that models hand to functional dropout as plain numbers (attention dropout, all
    of OPT's), layer drop and router jitter.
    """
    for part in model.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in vars(part).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(part, name, 0.0)


def set_gradient_checkpointing(model: Any, active: bool) -> None:
    """Switch a transformers model's activation checkpointing, non-reentrant: FSDP2 and packed rows need that kind.

    Raises:
        ValueError: the architecture has none.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(f"model.gradient_checkpointing=true, but {type(model).__name__} has no such thing")
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # renamed in 5.x
    if active:
        getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{word}_checkpointing_disable")()


def compile_layers(actor: nn.Module) -> None:
    """Compile each decoder layer in place; they share one graph, and names in state dicts stay as they are.

    Shared-prefix attention walks over the spans of the batch at hand, so it stays outside the graphs: traced, every
    batch would be a new program.
    """
    untraced = torch.compiler.disable(attention.attention_forward)  # type: ignore[no-untyped-call]
    AttentionInterface.register(attention.NAME, untraced)
    for layer in decoder_layers(actor):
        layer.compile(dynamic=True)


def _named_dtype(name: str) -> torch.dtype:
    return torch.float32 if name == "auto" else cast("torch.dtype", getattr(torch, name))
