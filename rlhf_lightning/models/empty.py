"""A transformers model without its weights, which knows where in its files they lie."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from rlhf_lightning.models.loading.heads import HEAD
from rlhf_lightning.models.shares import Piece, Reader, Whole, log_whole, mark

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def empty_source(source: Any, location: str, gguf: Path | None, quantization: object | None) -> PreTrainedModel | None:
    """The model of a source without its weights; None, with a sentence in the log, where it has to be loaded whole.

    Args:
        source: a ``Pretrained``, whose options count.
        location: folder or hub id.
        gguf: the GGUF file that the weights are in.
        quantization: of the weights while they load.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from rlhf_lightning.models.adapters.folders import holds_adapter
    from rlhf_lightning.models.export.classification import is_classifier, without_head

    obstacles = {
        "it is quantised while it loads": quantization is not None,
        "it is a GGUF file, which is dequantised as a whole": gguf is not None,
        "it is an adapter, which is merged into its base": gguf is None and holds_adapter(location),
        "it is steered (model.steering)": bool(source.steering),
    }
    options: dict[str, Any] = {} if source.attention == "auto" else {"attn_implementation": source.attention}
    options["revision"] = source.revision or "main"
    options["dtype"] = source.dtype if source.dtype == "auto" else getattr(torch, source.dtype)
    try:
        if (obstacle := next((reason for reason, stands in obstacles.items() if stands), None)) is not None:
            raise Whole(obstacle)
        if not is_classifier(location, source.revision):
            return empty_model(AutoModelForCausalLM, location, **options)
        classifier = empty_model(AutoModelForSequenceClassification, location, whole=[HEAD], **options)
        return cast("PreTrainedModel", without_head(classifier))
    except Whole as reason:
        log_whole(source.name, reason)
        return None


def empty_model(
    loader: Any, location: str, *, dtype: torch.dtype | str, revision: str, whole: Collection[str] = (), **options: Any
) -> PreTrainedModel:
    """Return what ``loader.from_pretrained`` gives, but for parameters: they have no storage yet.

    Args:
        loader: a class of transformers with ``from_pretrained``.
        location: folder or hub id.
        dtype: of the weights.
        revision: of a hub repository.
        whole: modules whose parameters are read at once.
        options: of ``from_config``.

    Raises:
        Whole: transformers does more than to read the weights by their names.
    """
    from transformers import AutoConfig
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
    dtype = (getattr(config, "dtype", None) or "auto") if dtype == "auto" else dtype
    if not isinstance(dtype, torch.dtype):
        raise Whole("its configuration names no dtype (model.dtype=auto)")
    if getattr(config, "quantization_config", None) is not None:
        raise Whole("its weights are quantised")
    pieces = _pieces(location, revision, dtype)
    with no_init_weights(), _without_storage():
        model: Any = loader.from_config(config, dtype=dtype, trust_remote_code=False, **options)
    model.tie_weights()  # left out where weights are not drawn
    if dtype != torch.float32 and (model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict):
        raise Whole(f"transformers keeps some weights of {type(model).__name__} in float32")
    _connect(model, pieces, whole)
    if model.can_generate():
        _read_generation_config(model, location, revision)
    empty: PreTrainedModel = model.eval()
    return empty


@contextmanager
def _without_storage() -> Iterator[None]:
    """Make modules whose parameters have no storage, but whose buffers do."""

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(cast("Any", emptied))
    try:
        yield
    finally:
        handle.remove()


def _pieces(location: str, revision: str, dtype: torch.dtype) -> dict[str, Piece]:
    """The weights of a folder or repository by name.

    Raises:
        Whole: it has no safetensors files.
    """
    from transformers.utils.hub import cached_file

    def local(name: str) -> str | None:
        path = cached_file(location, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return None if path is None else str(path)

    if (one := local(_ONE_FILE)) is not None:
        with Reader() as reader:
            return {name: Piece(one, name, dtype) for name in reader.file(one).keys()}  # noqa: SIM118 - no mapping
    if (index := local(_INDEX)) is None:
        raise Whole("it has no safetensors files")
    listed: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    files = {file: local(file) for file in sorted(set(listed.values()))}
    if lacking := [file for file, path in files.items() if path is None]:
        raise Whole(f"{lacking[0]} of its index is not there")
    return {name: Piece(str(files[file]), name, dtype) for name, file in listed.items()}


def _connect(model: Any, pieces: dict[str, Piece], whole: Collection[str]) -> None:
    """Note the piece of every parameter, and read buffers.

    Raises:
        Whole: names or shapes are not those of the model: transformers converts such weights, or they are refused.
    """
    expected = model.state_dict(keep_vars=True)
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    absent = {name for name, other in tied.items() if expected.get(name) is expected.get(other)} - pieces.keys()
    if differing := sorted((expected.keys() - absent) ^ pieces.keys()):
        raise Whole(f"its files and the architecture differ in names, for example {differing[0]}")
    if twice := sorted(pieces.keys() & tied.keys()):
        raise Whole(f"its files hold {twice[0]}, which its configuration ties to another weight")
    wanted = [(pieces[tied[name] if name in absent else name], name, value) for name, value in expected.items()]
    with Reader() as reader:
        for piece, name, value in sorted(wanted, key=lambda each: each[0].file):
            shape = reader.file(piece.file).get_slice(piece.name).get_shape()
            if shape != [*value.shape]:
                raise Whole(f"{name} is {shape} in its files and {[*value.shape]} by its configuration")
            path, _, last = name.rpartition(".")
            owner: nn.Module = model.get_submodule(path)
            if not isinstance(value, nn.Parameter):
                value.copy_(reader.rows(piece))
            elif name.startswith(tuple(f"{module}." for module in whole)):
                owner.register_parameter(last, nn.Parameter(reader.rows(piece).to(value.dtype)))
            else:
                mark(owner, last, piece)


def _read_generation_config(model: Any, location: str, revision: str) -> None:
    from transformers import GenerationConfig

    try:
        model.generation_config = GenerationConfig.from_pretrained(location, revision=revision)
    except OSError:  # none is there: the one made of the configuration stays, as in from_pretrained
        return
