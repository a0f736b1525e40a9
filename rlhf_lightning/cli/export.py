"""``rlhf export``: what a run trained as a folder for transformers or PEFT, or as a GGUF file, after the run."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning import clock
from rlhf_lightning.cli.card import write_card
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.console import say, setup_logging
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.folder import command_of
from rlhf_lightning.cli.overrides import readable
from rlhf_lightning.cli.results import short
from rlhf_lightning.cli.runs import read_config, weights_of

if TYPE_CHECKING:
    from rlhf_lightning.methods import AlignmentModule

log = logging.getLogger(__name__)

FORMS = ("auto", "adapter", "merged", "gguf")
DTYPES = ("float32", "bfloat16", "float16")
GGUF_DTYPES = (*DTYPES, "q8_0")


def main(arguments: Sequence[str]) -> int:
    """``rlhf export run=FOLDER [form=auto|adapter|merged|gguf] [key=value ...]``."""
    cfg = compose("export", readable(arguments))
    run = run_of(cfg)
    from transformers.utils.logging import disable_progress_bar

    setup_logging()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    clock.take_over(Path(cfg.run).expanduser())
    folder = export_run(cfg, run)
    use = f"model=hub model.name={short(folder)}" if cfg.form == "gguf" else f"model=run model.run={short(folder)}"
    say(f"exported {short(Path(cfg.run).expanduser())} to [bold]{short(folder)}[/]; {use}")
    return 0


def run_of(cfg: DictConfig) -> DictConfig:
    """The configuration of the run that is exported, after a check of what it can be exported as.

    Raises:
        ConfigError: an option is wrong, or the folder holds no run, or not one of this form.
    """
    run = read_config(cfg.run)
    check_form(cfg, run)
    if command_of(Path(cfg.run).expanduser()) != "train":
        raise ConfigError(f"run={cfg.run} is an evaluation, which trained nothing: give the folder of a training run")
    return run


def check_form(cfg: DictConfig, run: DictConfig) -> None:
    """Refuse a form that is none, or none of this run's.

    Raises:
        ConfigError: as above; the message names the option.
    """
    if cfg.form not in FORMS:
        raise ConfigError(f"form={cfg.form} is none of {', '.join(FORMS)}")
    dtypes = GGUF_DTYPES if cfg.form == "gguf" else DTYPES
    if cfg.dtype not in (None, *dtypes):
        raise ConfigError(f"dtype={cfg.dtype} is none of {', '.join(dtypes)}, which form={cfg.form} has")
    if cfg.form == "adapter" and not run.get("adapter"):
        raise ConfigError(f"form=adapter: run={cfg.run} trained whole weights and has no adapter: choose form=auto")


def export_run(cfg: DictConfig, run: DictConfig) -> Path:
    """Export a run from a checkpoint.

    Args:
        cfg: of the command.
        run: of the run; changed where the form asks for it.

    Returns:
        The folder that was written, or the GGUF file.
    """
    if cfg.form == "gguf":
        return _export_gguf(cfg, run)
    folder = Path(cfg.run).expanduser()
    checkpoint = weights_of(folder, cfg.ckpt_path)
    apart = cfg.form == "merged" and OmegaConf.select(run, "adapter.quantize") is not None
    if apart:
        log.info(
            "%-9s the adapter was trained on a base in %s and is merged into it in full", "base", run.adapter.quantize
        )
        run.adapter.quantize = None
    if cfg.dtype is not None:
        run.model.dtype = cfg.dtype
    module = _trained(run, checkpoint, compared=not apart)
    output = Path(cfg.output).expanduser() if cfg.output else folder / "export" / "last"
    written = module.export(output, cfg.form, _template(module, run, folder))
    write_card(written, folder)
    return written


def _export_gguf(cfg: DictConfig, run: DictConfig) -> Path:
    """Merge into a temporary folder beside the file, and write the file from there.

    Raises:
        ConfigError: the model or its tokenizer cannot be written; before weights are loaded where that can be seen.
    """
    from rlhf_lightning.models.gguf.export import FILE, write_gguf

    check_gguf(run)
    folder = Path(cfg.run).expanduser()
    output = Path(cfg.output).expanduser() if cfg.output else folder / "export" / "gguf"
    path = output if output.suffix == ".gguf" else output / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=path.parent) as merged:
        whole = cast("DictConfig", OmegaConf.merge(cfg, {"form": "merged", "dtype": None, "output": merged}))
        export_run(whole, run)
        try:
            write_gguf(Path(merged), path, cfg.dtype or str(run.model.dtype), name=folder.name)
        except ValueError as error:
            raise ConfigError(f"form=gguf: {error}") from error
    return path


def check_gguf(run: DictConfig) -> None:
    """Refuse, before weights are loaded, a run whose model or tokenizer has no form in a GGUF file.

    Raises:
        ConfigError: as above.
    """
    from rlhf_lightning.cli.instantiate import make
    from rlhf_lightning.methods.scoring import ScoringModule
    from rlhf_lightning.models.gguf.export import check_family
    from rlhf_lightning.models.gguf.tokenizer import vocabulary_of

    if issubclass(make(run.method).func, ScoringModule):
        raise ConfigError("form=gguf: the run trained a reward model, and a GGUF file holds a language model")
    source = make(run.model)
    try:
        check_family(source.sizes().family)
        vocabulary_of(source.tokenizer())
    except ValueError as error:
        raise ConfigError(f"form=gguf: {error}") from error


def _trained(run: DictConfig, checkpoint: Path, *, compared: bool) -> AlignmentModule[Any]:
    """The method's module with the weights of a checkpoint; no reference is loaded.

    Args:
        run: configuration.
        checkpoint: of the run.
        compared: whether the adapter's base must be the one that it was trained on, to the bit.
    """
    from rlhf_lightning.callbacks import EMAWeights
    from rlhf_lightning.checkpoint_files import read_checkpoint
    from rlhf_lightning.cli.build import make_models
    from rlhf_lightning.cli.instantiate import make
    from rlhf_lightning.models.roles.reference import ReferenceKind
    from rlhf_lightning.models.roles.trained import load_trained

    method = make(run.method)
    needed = "reference" in method.func.requires(method.keywords)
    models = make_models(run, ReferenceKind.CACHED if needed else ReferenceKind.NONE)
    module: AlignmentModule[Any] = method(models=models, optimizer=make(run.optimizer), scheduler=make(run.scheduler))
    module.configure_model()
    load_trained(checkpoint, module.policy, module.adapter_start if compared else None)
    averages: Mapping[str, Any] = read_checkpoint(checkpoint).get("callbacks") or {}
    if (average := averages.get(EMAWeights.__name__)) is not None:
        EMAWeights().restore(module, average)
    return module


def _template(module: AlignmentModule[Any], run: DictConfig, folder: Path) -> Any:
    """The chat template of the rows that the run was trained on; None where they were no conversations."""
    from rlhf_lightning.cli.instantiate import make
    from rlhf_lightning.data.tokens.encode import trained_template

    try:
        reports = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    spec = OmegaConf.select(run, "data.spec")
    conversations = (reports.get("train") or {}).get("conversations")
    return trained_template(module.tokenizer, make(spec)) if conversations and spec is not None else None
