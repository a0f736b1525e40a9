"""Parts of a critic besides its head: a separate model, separate upper layers, or an adapter."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.models.blocks import decoder_layers
from rlhf_lightning.models.buffers import keep_float32_buffers
from rlhf_lightning.models.loading.heads import HEAD, SavedHead
from rlhf_lightning.models.loading.weights import adapter_config, load_adapter
from rlhf_lightning.models.modes import disable_dropout
from rlhf_lightning.models.scorers.scorer import HeadInit, ScalarHead, Scorer
from rlhf_lightning.models.shares import reading_whole

if TYPE_CHECKING:
    from rlhf_lightning.models.adapters.lora import Adapter
    from rlhf_lightning.models.backbone import Backbone
    from rlhf_lightning.models.sources import ModelSource

log = logging.getLogger(__name__)

#: How a critic's head starts. ``auto`` keeps a head that comes with the weights and starts at zero otherwise.
CriticHead = Literal["auto", "keep", "zeros", "rsqrt", "inverse"]
#: What families call the norm behind their last layer.
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def separate_critic(
    policy: Backbone, source: ModelSource | None, head: CriticHead, adapter: Adapter | None, seed: int
) -> Scorer:
    """A critic with weights of its own: a copy of the policy's, or others, such as a reward model's with its head.

    Args:
        policy: whose weights are copied where there is no source, and whose tokens the critic reads.
        source: where other weights come from.
        head: how the head starts.
        adapter: of those other weights; None: all of them are trained. A copy has what the policy has.
        seed: of a head that is drawn.

    Raises:
        ValueError: the source has another vocabulary, or no head where one is to be kept.
    """
    with nullcontext() if adapter is None else reading_whole():
        model: Any = copy.deepcopy(policy.model) if source is None else _loaded(source, policy)
    if adapter is not None and source is not None:
        model = adapter.apply(model)  # a reward model's adapter brings a head
    if head == "keep" and not hasattr(model, "saved_head"):
        raise ValueError(
            f"method.critic.head=keep, but {'a copy of the policy' if source is None else source.name} has no head: "
            "choose head=zeros, or give a reward model as method.critic.source"
        )
    if source is not None and head == "auto" and not hasattr(model, "saved_head"):
        log.info("%-9s %s brings no head: every value starts at 0", "critic", source.name)
    init = head_init(head)
    scorer = Scorer(model, backend=policy.backend, init=init, seed=seed)  # takes a head that came with the weights
    if head not in ("auto", "keep"):
        scorer.head.reset(init, seed)
        scorer.mean, scorer.std = 0.0, 1.0
    return scorer


def head_init(head: CriticHead) -> HeadInit:
    """Draw the initial weights of a head that comes without any."""
    return "zeros" if head in ("auto", "keep") else cast("HeadInit", head)


def _loaded(source: ModelSource, policy: Backbone) -> Any:
    model: Any = source.load()
    ours, new = policy.base.get_input_embeddings(), model.get_input_embeddings()
    if ours.num_embeddings != new.num_embeddings:
        raise ValueError(
            f"the critic {source.name} has {new.num_embeddings} tokens and the policy {ours.num_embeddings}: it "
            "reads the policy's tokens, so method.critic.source must have the same vocabulary"
        )
    keep_float32_buffers(model)
    disable_dropout(model)
    return model


class Branch(nn.Module):
    """Copies of a trunk's last layers and of its final norm, on the states below them.

    The trunk itself runs as ever; what its last layers are called with is remembered, and the copies are called with
    the same, but for the states: so they see the same mask, positions and layout, whatever the family calls them.

    Args:
        trunk: the policy's transformer.
        layers: how many of its last layers are copied, >= 1.

    Raises:
        ValueError: it has no more layers than that, or its final norm is not known.
    """

    def __init__(self, trunk: nn.Module, layers: int) -> None:
        super().__init__()
        blocks = decoder_layers(trunk)
        norm = next((getattr(trunk, name) for name in _FINAL_NORMS if hasattr(trunk, name)), None)
        if not 1 <= layers < len(blocks):
            raise ValueError(
                f"method.critic.layers={layers} of the policy's {len(blocks)} layers: at least 1, and fewer than it has"
            )
        if norm is None or getattr(trunk, "project_out", None) is not None:
            raise ValueError(
                f"method.critic.kind=hydra does not know what follows the last layer of {type(trunk).__name__}: "
                "choose kind=shared or kind=separate"
            )
        self._originals = blocks[-layers:]  # a plain list: they are the trunk's, not ours
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in self._originals)
        self.norm = copy.deepcopy(norm)

    @property
    def size(self) -> int:
        """Of its states."""
        return int(self.norm.weight.numel())

    @contextmanager
    def listening(self) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
        """Collect the arguments that the originals of the copied layers are called with while this context is open."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        with ExitStack() as stack:
            for layer in self._originals:
                handle = layer.register_forward_pre_hook(lambda _, a, k: calls.append((a, k)), with_kwargs=True)
                stack.callback(handle.remove)
            yield calls

    def forward(self, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], *, detach: bool) -> Tensor:
        """Hidden states behind the copied layers, as the trunk's last ones are laid out.

        Args:
            calls: what the originals were called with.
            detach: no gradient reaches the layers below.
        """
        states: Any = _states(*calls[0])
        states = states.detach() if detach else states
        for layer, (args, kwargs) in zip(self.layers, calls, strict=True):
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            states = layer(states, *args[1:], **rest)
            states = states[0] if isinstance(states, tuple) else states
        normed: Tensor = self.norm(states)
        return normed


def _states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def add_critic_adapter(model: Any, name: str, adapter: Adapter | None, seed: int) -> SavedHead | None:
    """Put a second LoRA adapter on a PEFT model: the critic's. Both are trained, the policy's stays switched on.

    Whether they require gradients is settled here for good: DDP and FSDP2 look at it once, when they wrap the model.

    Args:
        model: with the policy's adapter.
        name: of the new one.
        adapter: its settings, or one that was saved, such as a reward model's; None: the policy's settings.
        seed: of its weights, where they are drawn.

    Returns:
        The head that came with a saved adapter.

    Raises:
        ValueError: the saved adapter does not fit the base, or changes more than layers.
    """
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    saved = None
    if adapter is not None and adapter.path is not None:
        saved = _load_critic_adapter(model, name, adapter.path)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.add_adapter(name, _critic_config(model, adapter))
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trained or f".{name}." in key)
    return saved


def _critic_config(model: Any, adapter: Adapter | None) -> Any:
    config = copy.deepcopy(model.peft_config[model.active_adapter])
    for option, attribute in (("r", "r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout")):
        if adapter is not None:
            setattr(config, attribute, getattr(adapter, option))
    # Nothing of the policy may change: some ways to start an adapter rewrite the base that both stand on.
    config.init_lora_weights, config.bias = True, "none"
    config.modules_to_save = config.trainable_token_indices = None
    return config


def _load_critic_adapter(model: Any, name: str, path: str) -> SavedHead | None:
    config = adapter_config(path)
    if {*(config.modules_to_save or ())} - {HEAD} or config.bias != "none" or config.trainable_token_indices:
        raise ValueError(
            f"method.critic.adapter: {path} changes more than layers (modules_to_save, bias or tokens), which "
            "the policy on the same base would feel: choose method.critic.kind=separate"
        )
    load_adapter(model, path, trainable=True, name=name)
    base = model.get_base_model()
    saved: SavedHead | None = vars(base).pop("saved_head", None)
    return saved


def critic_head(saved: SavedHead | None, size: int, head: CriticHead, seed: int) -> ScalarHead:
    """The head of an adapter's or a shared critic: a saved one in its normalised units, or a new one.

    Raises:
        ValueError: the saved one has several outputs, or is to be kept and there is none.
    """
    if saved is None or head not in ("auto", "keep"):
        if head == "keep":
            raise ValueError("method.critic.head=keep: the adapter of method.critic.adapter is no reward model's")
        return ScalarHead(size, init=head_init(head), seed=seed)
    if len(saved.weight) != 1:
        raise ValueError(f"method.critic.adapter: {saved.origin} has a head of {len(saved.weight)} outputs, not of one")
    made = ScalarHead(size, bias=True, init="zeros")
    assert made.bias is not None
    with torch.no_grad():
        made.weight.copy_(saved.weight / saved.std)
        shift = -saved.mean if saved.bias is None else saved.bias.float() - saved.mean
        made.bias.copy_(torch.as_tensor(shift / saved.std))
    return made


@contextmanager
def adapter_active(model: Any, name: str) -> Iterator[None]:
    """Compute with another LoRA adapter for a while.

    PEFT's own switch also freezes the other adapters, which sharded weights that are gathered meanwhile would keep for
    good; so only the name that each layer looks up is changed.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = name
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active
