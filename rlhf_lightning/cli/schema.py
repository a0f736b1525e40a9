"""The check of a composed configuration, before any weight is loaded.

Every node with a ``_target_`` is held against the signature of what it names, every plain node against the signature of
what it becomes (``trainer`` and ``strategy`` are arguments of lightning.Trainer). So a new loss, optimiser or callback
is checked without anyone writing a schema for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from rlhf_lightning.cli.annotations import annotations_of, check_value
from rlhf_lightning.cli.errors import EXTRAS, ConfigError, closest, describe, suggestion

#: Packages (or parts of one) that a ``_target_`` may name without asking; ``allow_targets`` adds more.
ALLOWED_TARGETS = (
    "rlhf_lightning",
    "torch.optim",
    "lightning.pytorch",
    "transformers",
    "peft",
    "torchmetrics",
    "bitsandbytes.optim",
)
#: Of those, what starts processes and writes files by design.
_NEVER = ("rlhf_lightning.cli",)
#: What Hydra's own part of a configuration may name.
_HYDRA_TARGETS = ("hydra._internal.core_plugins", "hydra.experimental.callbacks", "hydra_plugins", "optuna.samplers")
_HYDRA_OURS = ("rlhf_lightning.cli.sweep.SweepSummary",)
_HYDRA_KEYS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})
#: Trainer arguments that ``train()`` itself gives.
_TRAINER_OURS = frozenset({"self", "callbacks", "logger", "plugins", "default_root_dir"})


@dataclass
class Paths:
    """Keys of ``paths``."""

    runs: str
    sweeps: str
    output_dir: str | None = None


@dataclass
class _Job:
    """Top-level keys of what has a method, data and a trainer."""

    method: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any]
    optimizer: dict[str, Any]
    paths: dict[str, Any]
    seed: int
    adapter: dict[str, Any] | None = None
    reward: dict[str, Any] | None = None
    rollout: dict[str, Any] | None = None
    reference: dict[str, Any] | str | None = None
    strategy: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    callbacks: dict[str, Any] | None = None
    logger: dict[str, Any] | None = None
    ckpt_path: str | None = "auto"
    optimized_metric: str | None = None
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class Train(_Job):
    """Top-level keys of ``rlhf train``."""

    rerun: bool = False


@dataclass
class Evaluate(_Job):
    """Top-level keys of ``rlhf evaluate``."""

    run: str | None = None


@dataclass
class Generate:
    """Top-level keys of ``rlhf generate``."""

    model: dict[str, Any]
    seed: int
    max_new_tokens: int
    temperature: float
    top_p: float
    samples: int
    batch_size: int
    device: str
    spec: dict[str, Any]
    adapter: dict[str, Any] | None = None
    reward: dict[str, Any] | None = None
    keep: int | None = None
    run: str | None = None
    ckpt_path: str | None = None
    prompt: str | None = None
    prompts: str | None = None
    output: str | None = None
    system: str | None = None
    chat: bool = False
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class Data:
    """Top-level keys of ``rlhf data``."""

    method: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    rows: int
    seed: int
    allow_targets: list[str] = field(default_factory=list)


_TOP: Mapping[str, type] = {"train": Train, "evaluate": Evaluate, "generate": Generate, "data": Data}


def check_config(cfg: DictConfig, command: str) -> None:
    """Check a composed configuration; a float that stands for a whole number (``1e3``) becomes an int in place.

    Raises:
        ConfigError: one line for every problem found.
    """
    tree = _resolved(cfg)
    missing = sorted(OmegaConf.missing_keys(tree))
    if missing:
        raise ConfigError(_without_values(missing))
    problems = list(_check_top(cfg, tree, command))
    allowed = (*ALLOWED_TARGETS, *(tree.get("allow_targets") or ()))
    for key, node in _targets(tree):
        problems += _check_target(cfg, key, node, allowed)
    if "trainer" in tree and isinstance(tree["trainer"], dict):
        problems += _check_trainer(cfg, tree)
    if command == "train":
        problems += _check_optimized(tree)
    if problems:
        raise ConfigError("\n".join(problems))


def check_hydra(node: DictConfig | None) -> None:
    """Check what Hydra's own part of the configuration instantiates: launchers, sweepers, callbacks.

    Raises:
        ConfigError: a target that belongs neither to Hydra and its plugins nor to us.
    """
    for section in ("callbacks", "launcher", "sweeper"):
        part = OmegaConf.select(node, section) if node is not None else None
        for key, inner in _targets(OmegaConf.to_container(part) if OmegaConf.is_config(part) else part):
            path = str(inner["_target_"])
            if path not in _HYDRA_OURS and not _within(path, _HYDRA_TARGETS):
                raise ConfigError(f"hydra.{section}.{key}._target_: {path} does not belong to Hydra or its plugins")
            _check_installed(path)


def _check_installed(path: str) -> None:
    """Raise ConfigError for a plugin of Hydra's that is not installed."""
    root, _, rest = path.partition(".")
    plugin = rest.partition(".")[0]
    if root == "hydra_plugins" and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        name = next((extra for module, extra in EXTRAS.items() if module in plugin), None)
        hint = f"pip install 'rlhf-lightning[{name}]'" if name else f"pip install {plugin}"
        raise ConfigError(f"{plugin.replace('_', '-')} is not installed: {hint}")


def locate(path: str) -> Any:
    """The object that a dotted path names.

    Raises:
        ImportError: there is none.
    """
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                continue
            raise
        for position, part in enumerate(parts[cut:], start=cut):
            if not hasattr(found, part):
                owner = ".".join(parts[:position])
                close = closest(part, [name for name in dir(found) if not name.startswith("_")])
                raise ImportError(f"{owner} has no {part!r}" + (f"; did you mean {close}?" if close else ""))
            found = getattr(found, part)
        return found
    here = any(Path(name).exists() for name in (f"{parts[0]}.py", f"{parts[0]}/__init__.py"))
    hint = f"; the current folder has one: set PYTHONPATH={Path.cwd()}" if here else ""
    raise ImportError(f"no package {parts[0]!r} is installed{hint}")


def _without_values(keys: Sequence[str]) -> str:
    return "\n".join(f"{key} has no value and needs one: {key}=..." for key in keys)


def _unset(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys without a value in a tree whose interpolations are not resolved."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if value == "???":
            yield f"{prefix}{key}"
        yield from _unset(value, f"{prefix}{key}.")


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain containers with every interpolation resolved; the run's folder need not be known yet."""
    copy = cfg.copy()
    if OmegaConf.select(copy, "paths.output_dir", default="") is None:
        copy.paths.output_dir = "."
    try:
        tree = OmegaConf.to_container(copy, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        taken_over = isinstance(error, InterpolationToMissingValueError)
        missing = list(_unset(OmegaConf.to_container(copy))) if taken_over else []
        told = f"{key}: {describe(error)}" if key else describe(error)
        raise ConfigError(_without_values(missing) or told) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _check_top(cfg: DictConfig, tree: dict[str, Any], command: str) -> Iterator[str]:
    yield from _check_call(cfg, "", _TOP[command], tree, f"rlhf {command}", partial=False)
    if isinstance(tree.get("paths"), dict):
        yield from _check_call(cfg, "paths", Paths, tree["paths"], "paths", partial=False)


def _check_trainer(cfg: DictConfig, tree: dict[str, Any]) -> Iterator[str]:
    from lightning.pytorch import Trainer

    strategy = tree.get("strategy") or {}
    for key, options in (("trainer", tree["trainer"]), ("strategy", strategy)):
        if "_target_" not in options:
            yield from _check_call(cfg, key, Trainer, options, "lightning.Trainer", partial=True, hidden=_TRAINER_OURS)
    for option in sorted(set(strategy) & set(tree["trainer"])):
        yield f"trainer.{option} is set by the strategy group: use strategy.{option}=..."


def _check_optimized(tree: dict[str, Any]) -> Iterator[str]:
    """A metric of validations in a run without any: a sweep would train all its jobs before it finds no value."""
    metric = str(tree.get("optimized_metric") or "")
    if not metric.startswith("val/"):
        return
    switches = (
        ("data", "validation", (None, 0), "a share of the prompts (0.05) or a source"),
        ("trainer", "limit_val_batches", (0,), "1.0"),
    )
    for section, option, off, fix in switches:
        part = tree.get(section)
        if isinstance(part, dict) and option in part and part[option] in off:
            value = "null" if part[option] is None else part[option]
            yield (
                f"optimized_metric={metric} is logged in validations, and {section}.{option}={value} leaves none: set "
                f"it to {fix}, or optimise a metric of training, such as optimized_metric=train/loss"
            )


def _check_target(cfg: DictConfig, key: str, node: dict[str, Any], allowed: Sequence[str]) -> Iterator[str]:
    path = node["_target_"]
    if not isinstance(path, str) or not _within(path, allowed):
        yield _refused(key, path, str(path))
        return
    try:
        target = locate(path)
    except ImportError as error:
        yield f"{key}._target_: {path} cannot be imported: {error}"
        return
    home = getattr(target, "__module__", None) or ""
    if not callable(target) or not _within(home, allowed):
        yield _refused(key, f"{path} (which comes from {home or type(target).__name__})", home)
        return
    options = {name: value for name, value in node.items() if name not in _HYDRA_KEYS}
    partial = bool(node.get("_partial_")) or bool(node.get("_args_"))
    yield from _check_call(cfg, key, target, options, path.rpartition(".")[2], partial=partial)


def _check_call(
    cfg: DictConfig,
    key: str,
    target: Callable[..., Any],
    options: Mapping[str, Any],
    name: str,
    *,
    partial: bool,
    hidden: frozenset[str] = frozenset({"self"}),
) -> Iterator[str]:
    """Problems of calling ``target(**options)``, each with the full key of its option."""
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return  # written in C without a signature: its own call has to judge
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [p.name for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]
    known = [option for option in known if option not in hidden]
    types = annotations_of(target)
    for option, value in options.items():
        full = f"{key}.{option}" if key else option
        if option in known:
            yield from _check_option(cfg, full, value, types.get(option, Any))
        elif not open_ended:
            # A partial's positional parameters are given in code: legal in principle, no use to a reader.
            offered = [other for other in known if not partial or not _given_later(parameters[other])]
            yield f"{full}: {name} has no option {option!r}.{suggestion(option, offered)}"
    if not partial:
        for option in known:
            if parameters[option].default is inspect.Parameter.empty and option not in options:
                yield f"{key}.{option} has no value and needs one ({name})" if key else f"{option} is missing"


def _given_later(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD


def _check_option(cfg: DictConfig, full: str, value: Any, annotation: Any) -> Iterator[str]:
    if any(True for _ in _targets(value)):
        return  # the objects that these nodes become are judged by their own signatures
    accepted, problem = check_value(value, annotation)
    if problem is not None:
        yield f"{full}: {problem}"
    elif accepted is not value and type(accepted) is int:
        OmegaConf.update(cfg, full, accepted)


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a ``_target_``, with its full key, outermost first."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, inner in node.items():
            yield from _targets(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for position, inner in enumerate(node):
            yield from _targets(inner, f"{key}[{position}]")


def _within(path: str, packages: Sequence[str]) -> bool:
    def inside(roots: Sequence[str]) -> bool:
        return any(path == root or path.startswith(root + ".") for root in roots)

    return inside(packages) and not inside(_NEVER)


def _refused(key: str, path: Any, home: str) -> str:
    text = f"{key}._target_: {path} is not from a package that a yaml may use ({', '.join(ALLOWED_TARGETS)})."
    if any(home.startswith(root) for root in _NEVER) or not home:
        return text
    return f"{text} If you trust it, allow its package: allow_targets=[{home.partition('.')[0]}]"
