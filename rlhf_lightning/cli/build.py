"""From a checked configuration to the objects of a run. Nothing here loads weights."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.cli.cluster import cluster_environment
from rlhf_lightning.cli.draws import draws, kind_read
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.folder import start_of
from rlhf_lightning.cli.instantiate import make, make_all
from rlhf_lightning.cli.processes import processes
from rlhf_lightning.files import recovered
from rlhf_lightning.models.architectures import FAMILIES
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import ReferenceKind
from rlhf_lightning.models.roles.trained import load_trained
from rlhf_lightning.rewards.base import evaluated, reads_columns, roles_of

if TYPE_CHECKING:
    from rlhf_lightning.data.module import AlignmentDataModule
    from rlhf_lightning.methods import AlignmentModule

log = logging.getLogger(__name__)

_SWITCHES = {"enable_progress_bar": ProgressBar, "enable_checkpointing": Checkpoint}


@dataclass
class Run:
    """Everything that ``rlhf train`` and ``rlhf evaluate`` work with."""

    module: AlignmentModule[Any]
    data: Any  #: an ``AlignmentDataModule``, or an ``OnlineData`` around one for on-policy methods
    trainer: Trainer
    models: ModelBuilder
    folder: Path
    timeout: float = 1800.0  #: seconds that its processes wait for each other
    reference: dict[str, float] = field(default_factory=dict)  #: what ``reference=cached`` computed, found and saved


def make_run(cfg: DictConfig) -> Run:
    """Every object of a run.

    Raises:
        ConfigError, ValueError: options that do not go together.
    """
    method = make(cfg.method)
    models = make_models(cfg, reference_kind(cfg, method))
    module = method(models=models, optimizer=make_optimizer(cfg), scheduler=make(cfg.scheduler))
    make_as = functools.partial(make_data, cfg, models)
    mismatched = "kl" in module.needs and not draws(cfg, module)  # rounds have responses of their own
    data: Any = make_as(kind_read(cfg, module, module.kind), mismatched=mismatched)
    trainer = make_trainer(cfg, module.monitor)
    if draws(cfg, module):
        from rlhf_lightning.cli.rollouts import make_rollouts, make_rounds  # half a second that other jobs do not need

        if cfg.get("rounds"):
            data = make_rounds(cfg, models, module, data, make_as)
        else:
            data = make_rollouts(cfg, models, module, data)
        from rlhf_lightning.cli.shared import shared_rounds

        data.shared = shared_rounds(cfg, models, data, str(trainer.precision))
        # A role's model is assigned while a round is scored; between two steps it would be another one.
        score_samples(trainer, data.reward if cfg.get("reward") and not roles_of(data.reward) else None)
    elif cfg.get("reward"):
        reward = make(cfg.reward)(tokenizer=models.tokenizer())
        if not score_samples(trainer, reward):
            raise ConfigError("reward=... scores samples of the policy, but nothing samples: choose callbacks.samples")
        if reads_columns(reward):
            data.check_columns = reward.check_columns
    data.trainer = trainer  # it plans for the trainer's accumulation and processes, and fails before weights load
    timeout = OmegaConf.select(cfg, "strategy.timeout") or Run.timeout
    return Run(module, data, trainer, models, Path(cfg.paths.output_dir), float(timeout))


def make_optimizer(cfg: DictConfig) -> Any:
    """The maker of the optimiser, after it was tried on one number: torch looks at ranges only when it is called.

    Raises:
        ConfigError: an option is out of its range.
    """
    maker = make(cfg.optimizer)
    try:
        maker([torch.nn.Parameter(torch.zeros(1))])
    except ValueError as error:
        raise ConfigError(f"optimizer: {error}") from error
    return maker


def score_samples(trainer: Trainer, reward: Any) -> bool:
    """Let the callbacks that sample from the policy score their samples with a reward; whether there are any."""
    from rlhf_lightning.callbacks import PolicySamples

    sampling = [callback for callback in callbacks_of(trainer) if isinstance(callback, PolicySamples)]
    for callback in sampling:
        callback.scorer = None if reward is None else functools.partial(evaluated, reward)
    return bool(sampling)


def make_models(cfg: DictConfig, reference: ReferenceKind) -> ModelBuilder:
    """The builder of policy and reference.

    Raises:
        ValueError: the vocabulary of a teacher is another one.
    """
    teacher = make(cfg.reference.get("source")) if reference is ReferenceKind.TEACHER else None
    checkpoint = initial_weights(cfg)
    start = None if checkpoint is None else functools.partial(load_trained, checkpoint)
    models = ModelBuilder(make(cfg.model), make(cfg.adapter), reference, teacher=teacher, start=start)
    models.check_teacher()
    return models


def initial_weights(cfg: DictConfig) -> Path | None:
    """The checkpoint whose weights a run starts from, and its reference with it; of an evaluation: those of its run."""
    if "rerun" in cfg:
        return start_of(cfg, cfg.paths.output_dir)
    if cfg.get("run") is None:
        return None
    from rlhf_lightning.cli.runs import read_config

    return start_of(read_config(cfg.run), cfg.run)


def make_data(cfg: DictConfig, models: ModelBuilder, kind: str, *, mismatched: bool = False) -> AlignmentDataModule:
    """The data module, with the tokenizer of the model."""
    loading = dict(cfg.data.get("loading") or {})
    automatic = "padded" in loading and loading["padded"] is None
    options = {"loading": loading | {"padded": runs_padded(models)}} if automatic else {}
    data: AlignmentDataModule = make(cfg.data)(
        tokenizer=models.tokenizer(), kind=kind, seed=cfg.seed, mismatched=mismatched, **options
    )
    return data


def runs_padded(models: ModelBuilder) -> bool:
    """Check whether the model's batches will be padded, as far as that is known before its weights are loaded.

    A family that packing is not tested for runs padded; a model that does not say its family yet (a hub id, a GGUF
    file) is taken for one that is packed.
    """
    source: Any = models.source
    if source.backend != "auto":
        return bool(source.backend == "padded")
    family = getattr(source, "architecture", None)
    if family is None and (file := Path(str(source.name)).expanduser() / "config.json").is_file():
        family = json.loads(file.read_text()).get("model_type")
    return family is not None and family not in FAMILIES


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of a trainer, a list that may be changed before it runs; Lightning declares no type for it."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def reference_kind(cfg: DictConfig, method: functools.partial[Any]) -> ReferenceKind:
    """The reference that is loaded: the chosen one, or none where nothing would read it.

    A method without a reference gets none, unless one was asked for by name (``frozen``, ``adapter_off``): then the KL
    of its samples is logged, as for the methods that it is compared with.
    """
    module: Any = method.func
    needed = "reference" in module.requires(method.keywords)
    # Nothing can be cached of responses that are not drawn yet.
    unknown = cfg.reference.kind == ReferenceKind.CACHED and draws(cfg, module)
    rounds = cfg.get("rounds") or {}
    needed = needed or any(draw.get("source") in ("reference", "mixture") for draw in rounds.get("draws") or ())
    if rounds.get("reference") in ("previous_round", "ema"):
        return _moving_reference(cfg)
    if cfg.reference.kind == "auto" or unknown:
        return ReferenceKind.AUTO if needed else ReferenceKind.NONE
    chosen = ReferenceKind(cfg.reference.kind)
    if chosen is ReferenceKind.ADAPTER_OFF and (start := initial_weights(cfg)) is not None:
        raise ConfigError(
            f"reference=adapter_off is the model without the adapter, and this run starts from that of {start}: choose "
            "reference=frozen, or reference=auto"
        )
    asked_for = chosen in (ReferenceKind.FROZEN, ReferenceKind.ADAPTER_OFF)
    return chosen if needed or asked_for else ReferenceKind.NONE


def _moving_reference(cfg: DictConfig) -> ReferenceKind:
    """A copy of the policy, which rounds refresh.

    Raises:
        ConfigError: another reference was asked for by name.
    """
    if cfg.reference.kind not in ("auto", "cached", ReferenceKind.FROZEN):
        raise ConfigError(
            f"rounds.reference={cfg.rounds.reference} refreshes a copy of the policy, and reference="
            f"{cfg.reference.kind} is none: set reference=frozen, or rounds.reference=initial or round_start"
        )
    return ReferenceKind.FROZEN


def make_trainer(cfg: DictConfig, monitor: tuple[str, str] = ("val/loss", "min")) -> Trainer:
    """The Lightning Trainer of a run: the plain options of ``trainer`` and ``strategy``, and the dicts by name.

    Args:
        cfg: of the run.
        monitor: what a callback with ``monitor: auto`` ranks by: a metric, and whether ``min`` or ``max`` is best.
    """
    nodes = {name: _ranked_by(node, monitor) for name, node in _items(cfg.get("callbacks"))}
    loggers, callbacks, options = make_all(cfg.get("logger")), make_all(nodes), _plain(cfg.trainer)
    # Lightning takes a callback for something that was switched off as a contradiction, and adds one of its own
    # where there is none.
    if not any(isinstance(callback, Checkpoint) for callback in callbacks):
        options.setdefault("enable_checkpointing", False)
    off = tuple(kind for option, kind in _SWITCHES.items() if options.get(option) is False)
    job = processes(cfg.get("strategy"))
    return Trainer(
        **options,
        **make_strategy(cfg.get("strategy")) | {"devices": _value(job.devices), "num_nodes": job.nodes},
        callbacks=[callback for callback in callbacks if not isinstance(callback, off)],
        logger=loggers or False,
        plugins=[AtomicCheckpointIO(), cluster_environment(job.launch)],
        default_root_dir=cfg.paths.output_dir,
    )


def make_strategy(node: DictConfig | None) -> dict[str, Any]:
    """Arguments of the Trainer from the group ``strategy``; ``timeout`` is an option of the strategy itself."""
    options = {} if node is None else {name: value for name, value in _items(node) if name != "timeout"}
    made = {name: _value(value) for name, value in options.items()}
    if node is not None and node.get("timeout") is not None:
        made["strategy"] = instantiate(node.strategy, timeout=timedelta(seconds=float(node.timeout)), _convert_="all")
    return made


def checkpoint_to_resume(trainer: Trainer, ckpt_path: str | None, folder: Path) -> str | None:
    """Find the checkpoint that a run resumes from, with its optimiser, schedule and position in the data.

    Args:
        trainer: trainer whose checkpoint callbacks name the folders of checkpoints.
        ckpt_path: ``auto``, ``last``, a checkpoint in the folder, or one elsewhere, whose weights the run starts from
            and which is never resumed itself; None: from scratch.
        folder: folder of the run.

    Raises:
        ConfigError: the user asked for a checkpoint that does not exist.
    """
    if ckpt_path is None:
        return None
    path = Path(ckpt_path).expanduser()
    if ckpt_path not in ("auto", "last") and not path.exists():
        raise ConfigError(f"ckpt_path={ckpt_path}: there is no such checkpoint")
    if ckpt_path not in ("auto", "last") and path.resolve().is_relative_to(folder.resolve()):
        return str(path)
    # Not every callback that saves is a Checkpoint to Lightning: LastCheckpoint is none.
    folders = [name for callback in callbacks_of(trainer) if (name := getattr(callback, "dirpath", None))]
    checkpoint = last_checkpoint([Path(name) for name in dict.fromkeys([*folders, str(folder / "checkpoints")])])
    if checkpoint is None and ckpt_path == "last":
        raise ConfigError(f"ckpt_path=last: {folder} holds no last.ckpt. Set paths.output_dir to the run to resume")
    return None if checkpoint is None else str(checkpoint)


def last_checkpoint(folders: list[Path]) -> Path | None:
    """``last.ckpt`` in the first folder that has one, or what a kill while replacing it left."""
    paths = (recovered(folder / "last.ckpt") for folder in folders)
    return next((path for path in paths if path.exists()), None)


def _ranked_by(node: Any, monitor: tuple[str, str]) -> Any:
    """A callback's node with the method's own metric in the place of ``auto``."""
    if not node or node.get("monitor") != "auto":
        return node
    copy = node.copy()
    copy.monitor, copy.mode = monitor
    return copy


def _plain(node: DictConfig | None) -> dict[str, Any]:
    """Options as plain containers; nodes with a ``_target_`` become objects."""
    return {name: _value(value) for name, value in _items(node)}


def _items(node: DictConfig | None) -> Iterator[tuple[str, Any]]:
    return iter(()) if not node else ((str(name), value) for name, value in node.items())


def _value(value: Any) -> Any:
    if OmegaConf.is_dict(value) and "_target_" in value:
        return make(value)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
