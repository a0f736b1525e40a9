"""LoRA on a model, and a quantised base beneath it (QLoRA), through PEFT and bitsandbytes."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import nn

from rlhf_lightning.models.blocks import decoder_layers
from rlhf_lightning.models.loading.run_folders import exported_adapter
from rlhf_lightning.models.loading.weights import adapter_config, load_adapter
from rlhf_lightning.models.shares import stand_ins
from rlhf_lightning.options import Count, Positive, Seed

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel

Quantize = Literal["nf4", "int8"]
QUANTIZERS = ("nf4", "int8")


class Adapter(Protocol):
    """Something that turns a loaded model into one with few trainable parameters."""

    @property
    def quantize(self) -> str | None:
        """Quantisation of the base while it loads; None: none."""
        ...

    @property
    def path(self) -> str | None:
        """Folder of the trained adapter that training starts from; None: a fresh one, equal to the base."""
        ...

    def quantization(self, dtype: torch.dtype) -> BitsAndBytesConfig | None:
        """Settings for the loader; None: load as it is."""
        ...

    def apply(self, model: PreTrainedModel) -> PeftModel:
        """Put the adapter on the model; only the adapter is trainable afterwards."""
        ...


@dataclass(frozen=True)
class Lora:
    r"""Low-rank adaptation (arXiv:2106.09685): :math:`W x + \frac{\alpha}{r} B A x`, with A and B trained, W frozen.

    B starts at zero, so the model starts as its base. Defaults: rank and targets of QLoRA (arXiv:2305.14314 §4, which
    finds that all linear layers must be adapted to match full training), alpha = 2 r as in PEFT's and most recipes.

    Args:
        r: rank, >= 1.
        alpha: scale; the update is multiplied by alpha / r (alpha / sqrt(r) with ``rslora``).
        dropout: probability of zeroing an input of A while training, in [0, 1). Not touched by ``model.dropout``.
        target_modules: ``all-linear`` (all but the head) or names of the layers to adapt, as PEFT understands them.
        blocks: adapt only the first so many decoder blocks, and nothing outside them; None: all.
        rslora: rank-stabilised scale (arXiv:2312.03732).
        dora: weight-decomposed adaptation (arXiv:2402.09353).
        init: ``True`` is the paper's (A random, B zero); or a name that PEFT knows (``gaussian``, ``pissa``, ...).
        modules_to_save: further modules to train in full and save beside the adapter.
        quantize: ``nf4`` (QLoRA's 4-bit NormalFloat with double quantisation) or ``int8`` (LLM.int8()): how the frozen
            base is held. Needs bitsandbytes.
        path: folder of a trained adapter to start from; the fields above but ``quantize`` are then read from there.
        run: folder of a run whose exported adapter is ``path``.
        seed: of A. None takes the global generator. Every process must draw the same numbers.
        options: further fields of ``peft.LoraConfig``.

    Raises:
        ValueError: a number out of range, an unknown quantiser, or a run without an exported adapter.
    """

    r: Count = 16
    alpha: Positive = 32.0
    dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"
    blocks: Count | None = None
    rslora: bool = False
    dora: bool = False
    init: bool | str = True
    modules_to_save: Sequence[str] | None = None
    quantize: Quantize | None = None
    path: str | None = None
    run: str | None = None
    seed: Seed | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"adapter.r={self.r}: the rank must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter.dropout={self.dropout} is not in [0, 1)")
        if self.quantize is not None and self.quantize not in QUANTIZERS:
            raise ValueError(f"adapter.quantize={self.quantize!r}; it can be null, {' or '.join(QUANTIZERS)}")
        if self.run is not None:
            object.__setattr__(self, "path", exported_adapter(self.run))

    def quantization(self, dtype: torch.dtype = torch.float32) -> BitsAndBytesConfig | None:
        """Settings of bitsandbytes for the loader.

        Args:
            dtype: that matrix products are computed in; the dtype of the model's other weights.

        Raises:
            ModuleNotFoundError: bitsandbytes is not installed.
        """
        if self.quantize is None:
            return None
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ModuleNotFoundError(
                f'adapter.quantize={self.quantize} needs bitsandbytes: pip install "rlhf-lightning[quantization]"'
            )
        from transformers import BitsAndBytesConfig

        _quieten_bitsandbytes()
        if self.quantize == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )

    def apply(self, model: PreTrainedModel) -> PeftModel:
        """Put the adapter on the model. The adapter's weights are float32 even if the base's are half precision.

        Raises:
            ValueError: PEFT knows no such target module, or the adapter in ``path`` is not the whole of one for this
                model.
        """
        _quieten_bitsandbytes()
        keep_differentiable(model)
        with _seeded(self.seed), stand_ins(model), warnings.catch_warnings():
            # PEFT 0.21 reads a property that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            adapted = self._fresh(model) if self.path is None else self._saved(model, self.path)
        _forget_views(adapted)
        return adapted

    def _saved(self, model: PreTrainedModel, path: str) -> PeftModel:
        return load_adapter(model, path, trainable=True)

    def config(self) -> PeftConfig:
        """PEFT's configuration of the adapter, that of ``path`` where one is given; reads no weights.

        Raises:
            ValueError: nothing is at ``path``.
        """
        return self._config() if self.path is None else cast("PeftConfig", adapter_config(self.path))

    def reads_base(self) -> str | None:
        """Option by which the adapter's start is made of the base's weights, or changes them; None: there is none."""
        config: Any = self.config()
        if config.peft_type != "LORA":
            return f"a {config.peft_type} adapter"
        if config.init_lora_weights not in (True, False, "gaussian"):
            return f"adapter.init={config.init_lora_weights}"
        options = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication")
        if named := [name for name in options if getattr(config, name, None)]:
            return f"an adapter with {named[0]}"
        return None if config.bias == "none" else f"an adapter with bias={config.bias}"

    def _config(self) -> LoraConfig:
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules),
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=self.init,
            modules_to_save=list(self.modules_to_save) if self.modules_to_save else None,
            **self.options,
        )

    def _fresh(self, model: PreTrainedModel) -> PeftModel:
        from peft import get_peft_model

        config = self._config()
        if self.blocks is not None:
            config.target_modules = set(linear_layers(model, self.blocks, self.target_modules))
        if hasattr(model, "saved_head"):  # a reward model's trunk
            config.task_type = None
        return get_peft_model(model, config)


def linear_layers(model: nn.Module, blocks: int, named: str | Sequence[str]) -> list[str]:
    """Full names of the linear layers in the first decoder blocks of a model.

    Args:
        model: without an adapter.
        blocks: how many blocks.
        named: ``all-linear``, a regular expression for whole names, or the last parts of names.

    Raises:
        ValueError: none of these layers has such a name.
    """
    from transformers.pytorch_utils import Conv1D

    inside = {id(part) for block in decoder_layers(model)[:blocks] for part in block.modules()}
    linear = [
        name
        for name, part in model.named_modules()
        if id(part) in inside and isinstance(part, nn.Linear | Conv1D)  # quantised ones are subclasses
    ]
    if isinstance(named, str):
        modules = [name for name in linear if named == "all-linear" or re.fullmatch(named, name)]
    else:
        modules = [name for name in linear if name.endswith(tuple(f".{last}" for last in named))]
    if not modules:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(f"adapter.target_modules={named}: the first {blocks} blocks have the linear layers {ends}")
    return modules


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit layers on the code path that has gradients.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight for inference the first time its layer runs in
    evaluation mode. The repacked layer has no backward pass: training afterwards loses, without an error, the gradient
    of everything below it. Any evaluation (a reference pass, a sample) would trigger that.
    """
    for module in cast("Iterable[Any]", model.modules()):
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _forget_views(model: nn.Module) -> None:
    """Drop views that PEFT 0.21 keeps of tied adapters (``ensure_weight_tying``), with which no copy can be made."""
    for layer in cast("Iterable[Any]", model.modules()):
        if isinstance(kept := getattr(layer, "kwargs", None), dict):
            kept.pop("tied_adapter", None)


def is_adapted(model: nn.Module) -> bool:
    """Return whether the model is a PEFT model."""
    return hasattr(model, "peft_config")


def without_adapter(module: nn.Module) -> nn.Module:
    """The layer beneath what PEFT put around it (a low-rank update, or a copy that is trained in full)."""
    for name in ("base_layer", "original_module"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return without_adapter(inner)
    return module


def _quieten_bitsandbytes() -> None:
    """Drop two messages of no use.

    Int8 layers announce each cast of their inputs, at every step; and a CPU kernel that only inference would use is
    reported missing whenever bitsandbytes is imported, which PEFT does by itself.
    """
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_worth_reading)


def _worth_reading(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "inputs will be cast" not in message and "gemm_4bit_forward" not in message


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from a generator of our own and leave the global one as it was; None: draw from the global one."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
