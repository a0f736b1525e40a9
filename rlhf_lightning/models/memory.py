"""Needs of a run, reported before its first step: parameters, trainable share, dtype, peak memory.

Activations are measured, not modelled: two small forward passes, with every tensor that autograd keeps counted once,
give the bytes a token and the bytes that do not depend on the number of tokens (half-precision copies of the weights
under autocast, for one). So the prediction follows the architecture, the attention backend, adapters and precision
without a formula for each.

Not counted is what single operations hold for a moment (scores of attention on a CPU), what draws and scores
responses, and what the allocator keeps of freed memory. On a CPU the process's peak is predicted too: what it holds
before its first step, and what a step adds; ``benchmarks/predicted_memory.py`` compares it with the measured peak.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlhf_lightning.models.blocks import decoder_layers
from rlhf_lightning.models.loading.naming import transformers_model
from rlhf_lightning.models.modes import set_gradient_checkpointing
from rlhf_lightning.models.roles.earlier import AdapterCopy
from rlhf_lightning.models.sharding import reshard, unsharded
from rlhf_lightning.ops.log_probs import BLOCK_BYTES, DEFAULT_BLOCK_BYTES
from rlhf_lightning.types import PackedBatch, StepTotals

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.roles.models import Models

_TRIAL = (48, 144)  # tokens of the two trial passes
#: What the peak is made of, as :class:`ModelSummary` calls it.
_PARTS = ("weights", "reference", "earlier", "gradients", "optimizer", "activations", "head")
_HEAD_BUFFERS = 3  # a block of logits, its probabilities, their gradient


@dataclass(frozen=True)
class ModelSummary:
    """Sizes of a run's models. Memory is in bytes, of one process."""

    parameters: int  #: of the whole policy, all processes together
    trainable: int
    dtype: str  #: of most of the policy's weights
    weights: int
    reference: int
    earlier: int  #: copies of the policy that rewards compare with
    gradients: int
    optimizer: int
    activations: int  #: what the backward pass keeps of one micro-batch
    head: int  #: blocks of logits while they are computed
    resident: int | None = None  #: what the process holds before its first step, weights and libraries; None: not known

    @property
    def peak(self) -> int:
        """Predicted peak of a step's tensors: all parts are alive when a later micro-batch begins its backward."""
        return sum(getattr(self, part) for part in _PARTS)

    @property
    def process(self) -> int | None:
        """Predicted peak of the process in a step: what it holds already and what a step adds; None: not known."""
        added = self.gradients + self.optimizer + self.activations + self.head
        return None if self.resident is None else self.resident + added

    def __str__(self) -> str:
        share = 100 * self.trainable / max(self.parameters, 1)
        listed = ", ".join(f"{part} {bytes_text(getattr(self, part))}" for part in _PARTS if getattr(self, part))
        told = (
            f"{count_text(self.parameters)} parameters, {count_text(self.trainable)} trainable ({share:.3g} %), "
            f"{self.dtype}; predicted peak of a step's tensors {bytes_text(self.peak)}: {listed}"
        )
        if self.process is None or self.resident is None:
            return told
        return f"{told}; of the process {bytes_text(self.process)}, which holds {bytes_text(self.resident)} by now"


def describe(
    models: Models, *, tokens: int, precision: str = "32-true", optimizer_numbers: float = 2.0, trial: bool = True
) -> ModelSummary:
    """Sizes of the models and the peak memory predicted for training them.

    Under FSDP2 a collective call.

    Args:
        models: on the device they will train on.
        tokens: of the largest micro-batch, prompts and responses.
        precision: the trainer's; ``bf16-mixed`` runs the trial under autocast.
        optimizer_numbers: numbers the optimiser keeps for each trainable one: 2 for Adam, 1 with momentum, 0 for SGD.
        trial: False skips the forward passes and predicts no activations.
    """
    policy = models.policy
    reshard(policy)
    parameters = list(policy.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = _bytes(trained)
    device = next(iter(parameters)).device
    activations = _activations(policy, tokens, precision) if trial and trained else 0
    vocabulary = int(transformers_model(policy).config.get_text_config().vocab_size)
    block = min(tokens * vocabulary * 4, BLOCK_BYTES.get(device.type, DEFAULT_BLOCK_BYTES))
    reference = models.reference
    return ModelSummary(
        parameters=sum(_numbers(parameter) for parameter in parameters),
        trainable=sum(_numbers(parameter) for parameter in trained),
        dtype=_main_dtype(parameters),
        weights=_bytes(parameters),
        reference=_copied(reference),
        earlier=sum(_copied(copy) for copy in models.earlier.values() if copy is not reference),
        gradients=gradients,
        optimizer=round(optimizer_numbers * gradients),
        activations=activations,
        head=_HEAD_BUFFERS * block,
        resident=_resident() if device.type == "cpu" else None,
    )


def count_text(number: float) -> str:
    """A count in three digits: ``134M``."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def bytes_text(number: float) -> str:
    """Bytes in three digits: ``2.51 GiB``."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def _activations(policy: Actor, tokens: int, precision: str) -> int:
    """Bytes that autograd keeps of a micro-batch, extrapolated from two small ones."""
    model: Any = transformers_model(policy)
    checkpointing = any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    if checkpointing:
        set_gradient_checkpointing(model, False)
    try:
        with unsharded(policy):
            small, large = (float(_kept_bytes(policy, size, precision)) for size in _TRIAL)
    finally:
        if checkpointing:
            set_gradient_checkpointing(model, True)
    slope = (large - small) / (_TRIAL[1] - _TRIAL[0])
    fixed = max(small - slope * _TRIAL[0], 0)
    if not checkpointing:
        return round(fixed + slope * tokens)
    # One layer's activations exist at a time, and the input of each.
    layers = max(len(decoder_layers(policy)), 1)
    size: int = next(model.parameters()).element_size()
    width = int(model.config.get_text_config().hidden_size) * size
    return round((fixed + slope * tokens) / layers + layers * width * tokens)


def _kept_bytes(policy: Actor, tokens: int, precision: str) -> int:
    """Bytes of the distinct storages that autograd keeps of one forward pass, less the weights'."""
    device = next(policy.parameters()).device
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # the tensor is held so that its address is not used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.enable_grad(),
        _autocast(device, precision),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        output = policy(_trial_batch(tokens).to(device))
        size = sum(nbytes for nbytes, _ in kept.values())
    del output
    return size


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if precision not in dtypes:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtypes[precision])


def _trial_batch(tokens: int) -> PackedBatch:
    """A prompt and two responses to it, ``tokens`` in all, of one repeated token."""
    prompt = tokens // 3
    first = (tokens - prompt) // 2
    spans = torch.tensor([[prompt, prompt + first], [prompt + first, tokens]])
    positions = torch.cat(
        [torch.arange(prompt), *(prompt + torch.arange(end - start) for start, end in spans.tolist())]
    )
    target = torch.arange(prompt, tokens)
    source = target - 1
    source[first] = prompt - 1  # the second response follows the prompt, not the first response
    return PackedBatch(
        ids=torch.ones(tokens, dtype=torch.long),
        positions=positions,
        prompt_span=torch.tensor([[0, prompt]]),
        response_span=spans,
        parent=torch.zeros(2, dtype=torch.long),
        target=target,
        source=source,
        sequence=torch.cat([torch.full((end - start,), i) for i, (start, end) in enumerate(spans.tolist())]),
        index=torch.zeros(1, dtype=torch.long),
        totals=StepTotals(groups=1, slot_tokens=(first, tokens - prompt - first)),
    )


def _resident() -> int | None:
    """Bytes of main memory that this process holds; None where the system has no ``/proc``."""
    file = Path("/proc/self/statm")
    if not file.is_file():
        return None
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _numbers(parameter: Tensor) -> int:
    """Weights that a parameter stands for; a 4-bit parameter stores several in one number."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def _bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes of this process's shards."""
    local = (p.to_local() if hasattr(p, "to_local") else p for p in parameters)
    return sum(p.numel() * p.element_size() for p in local)


def _copied(copy: Any) -> int:
    """Bytes of a copy of the policy: of a model, or of an adapter alone."""
    if isinstance(copy, AdapterCopy):
        return _bytes(copy.weights.values()) + _copied(copy.before)
    return _bytes(copy.parameters()) if isinstance(copy, nn.Module) else 0


def _main_dtype(parameters: Iterable[Tensor]) -> str:
    sizes: dict[str, int] = {}
    for parameter in parameters:
        name = {"Params4bit": "4-bit", "Int8Params": "int8"}.get(type(parameter).__name__)
        name = name or str(parameter.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + _numbers(parameter)
    return max(sizes, key=lambda name: sizes[name])
