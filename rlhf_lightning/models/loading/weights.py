"""Weights of a folder or of the hub, loaded whole or refused.

What a file lacks transformers draws at random, and what a model has no room for it leaves out, both with a remark in
the log; PEFT does the same without one. A run on such a model has numbers that mean nothing and differ by the seed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.models.loading.heads import HEAD, saved_head

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

#: What PEFT puts before the name of a weight.
PEFT_PREFIX = "base_model.model."


def load_model(
    loader: Any, location: str | Path, *, new: Collection[str] = (), other_heads: bool = False, **options: Any
) -> PreTrainedModel:
    """A transformers model all of whose weights came from its files.

    Args:
        loader: a class of transformers with ``from_pretrained``.
        location: folder or hub id.
        new: modules that the files may lack, since somebody else brings them.
        other_heads: whether the files may have weights that stand outside the transformer: another model's head.
        options: of ``from_pretrained``.

    Raises:
        ValueError: weights are missing, are of another shape than the configuration says, or have no place.
    """
    with _without_report():
        model, info = loader.from_pretrained(
            location, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    trunk = f"{model.base_model_prefix}."
    missing = [name for name in info["missing_keys"] if not name.startswith(tuple(f"{module}." for module in new))]
    unknown = [name for name in info["unexpected_keys"] if not other_heads or name.startswith(trunk)]
    reshaped = [f"{name} {[*saved]} instead of {[*expected]}" for name, saved, expected in info["mismatched_keys"]]
    _refuse(f"{location} does not hold a whole {type(model).__name__}", missing, unknown, reshaped, _advice(missing))
    loaded: PreTrainedModel = model
    return loaded


def load_adapter(
    model: PreTrainedModel | PeftModel, path: str, *, trainable: bool, whole: bool = False, name: str = "default"
) -> PeftModel:
    """A PEFT model around a model, with an adapter that was saved; a PEFT model gets it beside those that it has.

    The head that a reward model's adapter comes with is left at ``saved_head``, where the
    :class:`~rlhf_lightning.models.scorers.scorer.Scorer` looks for it.

    Args:
        model: that the adapter was trained on.
        path: folder or hub id of the adapter.
        trainable: whether it is trained further.
        whole: the model is a sequence-classification model with a head of its own, which takes the saved one's place.
        name: of the adapter in the model.

    Raises:
        ValueError: the file lacks weights of the adapter, has others, or the model has other layers.
    """
    from peft import load_peft_weights

    folder, config = _folder(path), adapter_config(path)
    detached = config.task_type == "SEQ_CLS" and not whole
    if detached:
        config.task_type = None
        config.modules_to_save = [name for name in config.modules_to_save or () if name != HEAD] or None
    problem = f"the adapter {path} does not fit {model.name_or_path or type(model).__name__}"
    advice = "give the model that it was trained on, and its whole file"
    try:
        adapted, outcome = _adapted(model, folder, config, trainable, name)
    except KeyError as error:  # of a module that the adapter has a whole copy of
        _refuse(problem, [str(error.args[0])], (), (), advice)
        raise
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ValueError(f"{problem}: {str(error).splitlines()[-1].strip()}: {advice}") from error
    head = f"{PEFT_PREFIX}{HEAD}"
    unknown = [name for name in outcome.unexpected_keys if not (detached and name.startswith(f"{head}."))]
    _refuse(problem, _without_value(adapted, outcome.missing_keys), unknown, (), advice)
    if detached:
        base: Any = adapted.get_base_model()
        base.saved_head = saved_head(load_peft_weights(folder, device="cpu"), head, folder)
    return adapted


def adapter_config(path: str) -> Any:
    """PEFT's configuration of a saved adapter; reads no weights.

    Args:
        path: folder or hub id.

    Raises:
        ValueError: there is none.
    """
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(_folder(path))
    except ValueError as error:
        raise ValueError(
            f"adapter.path={path} holds no adapter ({error}). A whole model, as of a merged export, is given as "
            f"model=hub model.name={path} with a new adapter or none; "
            "callbacks.export.form=adapter exports the adapter itself"
        ) from error


def _folder(path: str) -> str:
    """A folder with ~ expanded, or a hub id as it is."""
    folder = Path(path).expanduser()
    return str(folder) if folder.exists() else path


def _adapted(model: Any, folder: str, config: Any, trainable: bool, name: str) -> tuple[PeftModel, Any]:
    """The model with its adapter, and PEFT's account of the names that were missing or had no place.

    Only ``load_adapter`` gives that account, so the file is read a second time.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            adapted = model
        else:
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable, config=config, adapter_name=name)
        return adapted, adapted.load_adapter(folder, name, is_trainable=trainable)


def _without_value(model: PeftModel, missing: Collection[str]) -> list[str]:
    """The missing names but those of a tensor that another name has a value for, as VB-LoRA's layers share one bank."""
    tensors = model.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    return [name for name in missing if name not in tensors or id(tensors[name]) not in loaded]


def check_classifier(location: str | Path, architectures: Sequence[str] | None, option: str = "reward.path") -> None:
    """Refuse what says of itself that it is no sequence-classification model; reads no weights.

    Args:
        location: folder or hub id.
        architectures: of its configuration; None where it does not say.
        option: that names it.

    Raises:
        ValueError: it is another kind of model, such as a language model.
    """
    if architectures and not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ValueError(
            f"{option}={location} holds a {architectures[0]}, which has no head for rewards, and one drawn at random "
            "would say nothing: name the export of a reward model (rlhf train method=bradley_terry)"
        )


def _refuse(
    problem: str, missing: Collection[str], unknown: Collection[str], reshaped: Collection[str], advice: str
) -> None:
    told = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:2])}{', ...' if len(names) > 2 else ''})"
        for names, what in (
            (missing, "weights are missing and would be random"),
            (unknown, "weights have no place in it"),
            (reshaped, "weights have another shape than its configuration says"),
        )
        if names
    ]
    if told:
        raise ValueError(f"{problem}: {'; '.join(told)}: {advice}")


def _advice(missing: Collection[str]) -> str:
    heads = {name.rpartition(".")[0] for name in missing} & {HEAD, "classifier"}
    if heads:
        return "name a model that was trained to give scores, such as the export of method=bradley_terry"
    return "give the folder of a whole model, whose config.json is that of its weights (sizes, layers, num_labels)"


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers' table of missing and unexpected weights from the terminal: an error has them."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextmanager
def clear_errors(name: str) -> Iterator[None]:
    """Errors of the hub's client that say which of our options to change."""
    try:
        yield
    except (FileNotFoundError, ModuleNotFoundError):
        raise
    except OSError as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise OSError(
            f"model.name={name!r} could not be loaded: {reason} (a hub id needs a network or a filled hub cache, and "
            "HF_TOKEN where it is gated or private; otherwise give a folder or a .gguf file, or model=smollm2, which "
            "needs neither)"
        ) from error
    except ValueError as error:
        if "backend tokenizer" in str(error):
            raise ValueError(f"{name} has no tokenizer: name one with model.tokenizer_name") from error
        if "trust_remote_code" not in str(error) and "custom code" not in str(error):
            raise
        raise ValueError(
            f"model.name={name!r} needs code that comes with the model, and such code is never run here. Use an "
            "architecture that transformers itself has, or convert the checkpoint to one"
        ) from error


def is_quantized(model: nn.Module) -> bool:
    """Return whether some weights of the model are held by bitsandbytes."""
    return any(type(parameter).__name__ in {"Params4bit", "Int8Params"} for parameter in model.parameters())
