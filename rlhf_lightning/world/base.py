"""The base model of the tiny world: trained once in seconds, cached by content, loaded like any other model.

The cache folder is ``world/<digest>`` in ``$RLHF_CACHE``: the digest covers everything that determines the weights. If
several jobs need the base, one trains it and the others wait. The folder is renamed into place only when complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from filelock import FileLock

from rlhf_lightning.data.tokens.cache import default_folder
from rlhf_lightning.models.hidden_states.steering import Steerable
from rlhf_lightning.models.loading.tokenizers import prepare_tokenizer
from rlhf_lightning.models.loading.weights import load_model
from rlhf_lightning.models.sizes import Sizes
from rlhf_lightning.models.sources import Dtype, Execution
from rlhf_lightning.options import Count, Positive, Seed, WholeNumber
from rlhf_lightning.world import grammar
from rlhf_lightning.world.tokenizer import BOS, EOS, PAD, VOCABULARY, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: Part of the key; increase it when the same settings give another base.
BASE_VERSION = 1
#: Seconds that jobs wait for the one that trains the base.
_PATIENCE = 1800.0


@dataclass(frozen=True)
class TinyWorld(Execution, Steerable):
    """The tiny world's base: a Llama of half a million parameters, trained on responses of every style.

    It is trained on first use, in under a minute on one core, and cached in ``$RLHF_CACHE``. Its weights do not depend
    on, and do not disturb, the global random number generators.

    Args:
        seed: seed of the weights and the training data; another seed gives another base.
        hidden_size: width of the residual stream.
        layers: decoder layers.
        heads: attention heads; must divide ``hidden_size``.
        intermediate_size: width of the MLP.
        steps: training steps.
        batch_size: responses per step.
        lr: peak learning rate of the training, AdamW with a cosine to zero.
        dtype: dtype of the loaded weights: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ValueError: unknown dtype.
    """

    seed: Seed = 0
    hidden_size: Count = 128
    layers: Count = 2
    heads: Count = 4
    intermediate_size: Count = 384
    steps: WholeNumber = 300
    batch_size: Count = 32
    lr: Positive = 4.0e-3
    dtype: Dtype = "float32"
    name: str = "tiny"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"model.dtype={self.dtype!r} must be float32, bfloat16 or float16")

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer with one token per word; it needs no training."""
        return prepare_tokenizer(tiny_tokenizer())

    def sizes(self) -> Sizes:
        """Depth and width of the model."""
        return Sizes(self.layers, self.hidden_size, "llama")

    def load(self, quantization: BitsAndBytesConfig | None = None) -> PreTrainedModel:
        """Load the base in evaluation mode; train it first if it is not in the cache.

        Args:
            quantization: bitsandbytes settings; the weights are then quantised while they load.
        """
        from transformers import LlamaForCausalLM

        options: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
        model: Any = load_model(LlamaForCausalLM, self.folder() / "model", dtype=getattr(torch, self.dtype), **options)
        return self.steer(cast("PreTrainedModel", model.eval()), self.name, self.sizes)

    def folder(self) -> Path:
        """Folder of the cached base, with ``model`` and ``base.json``; created if missing."""
        return kept(default_folder() / "world" / self.digest(), self._train)

    def digest(self) -> str:
        """Digest of everything that determines the weights: language, sizes, training, torch's version."""
        settings = {name: value for name, value in asdict(self).items() if name not in _NOT_CONTENT}
        parts = [BASE_VERSION, settings, grammar.content(), torch.__version__]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def configuration(self) -> PretrainedConfig:
        """Configuration of the model; trains nothing."""
        from transformers import LlamaConfig

        ids = VOCABULARY.index
        return LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            initializer_range=0.05,
            pad_token_id=ids(PAD),
            bos_token_id=ids(BOS),
            eos_token_id=ids(EOS),
        )

    def new_model(self) -> PreTrainedModel:
        """Create the model before its training."""
        from transformers import LlamaForCausalLM

        config: Any = self.configuration()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return cast("PreTrainedModel", LlamaForCausalLM(config))

    def _train(self, folder: Path) -> None:
        from rlhf_lightning.models.gguf.files import save_model
        from rlhf_lightning.world.training import train_base

        log.info("training the tiny world's base once, for %s", folder.parent)
        started = time.perf_counter()
        model = self.new_model()
        loss = train_base(model, steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=self.seed)
        seconds = time.perf_counter() - started
        save_model(model, folder / "model")
        facts = {"parameters": model.num_parameters(), "seconds": round(seconds, 1), "loss": round(loss, 4)}
        (folder / "base.json").write_text(json.dumps(facts) + "\n")


#: Fields that control how the base is run and do not affect its weights.
_NOT_CONTENT = frozenset({"backend", "dropout", "gradient_checkpointing", "compile", "dtype", "name", "steering"})


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; create it if missing.

    If several processes need it, one creates it and the others wait. It is written under a temporary name, flushed and
    renamed, so that it is complete or missing, whenever a process is killed.

    Args:
        folder: path of the folder.
        make: fills an empty folder.

    Raises:
        OSError: the cache cannot be written; the message names ``RLHF_CACHE``.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=_PATIENCE):
            if not folder.is_dir():
                _make(folder, make)
    except OSError as error:
        raise OSError(
            f"the tiny world cannot be cached in {folder}: {error}. Set RLHF_CACHE to a writable folder"
        ) from error
    return folder


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    for abandoned in folder.parent.glob(f"{folder.name}.*.tmp"):  # we hold the lock: nobody writes there
        shutil.rmtree(abandoned, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        make(unfinished)
        for file in unfinished.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
