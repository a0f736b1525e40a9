"""Identity of a run, and options that may change when it is resumed.

A key that stands in none of the two tables is part of the run: resuming under another value of it would continue one
computation as another.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from rlhf_lightning.models.loading.run_folders import exported

Tree = Mapping[str, Any]

_LENGTH = "how long it trains: the longer run has the same batches, and the rates that its schedule gives that length"
_VALIDATION = "when and on how much it validates: training does not see it"
_SHOWN = "what is shown and logged"
_PROCESSES = "how a step is cut, on which it does not depend; the loader refuses what it cannot resume"
_CONTENT = "where the file lies: its content is compared"
_SPEED = "speed and memory, not numbers"
_SERVER = "where and how patiently a server is asked, not its replies"

#: Top-level keys that do not change what a job computes.
_NOT_COMPUTED = ("paths", "rerun")
#: Callbacks that decide what is kept of a job, not what it computes.
_OUTPUT_CALLBACKS = ("rollout_files",)
#: Keys, each with everything below it, that may change, and why.
MAY_CHANGE: Mapping[str, str] = {
    "paths": "where results go",
    "logger": _SHOWN,
    "rerun": "asks for a run from scratch",
    "allow_targets": "what a yaml may name, which is checked by itself",
    "optimized_metric": "what is returned when all is done",
    "trainer.max_steps": _LENGTH,
    "trainer.max_epochs": _LENGTH,
    "trainer.min_steps": _LENGTH,
    "trainer.min_epochs": _LENGTH,
    "trainer.max_time": _LENGTH,
    "trainer.limit_val_batches": _VALIDATION,
    "trainer.val_check_interval": _VALIDATION,
    "trainer.check_val_every_n_epoch": _VALIDATION,
    "trainer.num_sanity_val_steps": _VALIDATION,
    "trainer.log_every_n_steps": _SHOWN,
    "trainer.enable_progress_bar": _SHOWN,
    "trainer.enable_model_summary": _SHOWN,
    "trainer.enable_checkpointing": "what is kept",
    "trainer.profiler": _SHOWN,
    "trainer.accumulate_grad_batches": _PROCESSES,
    "strategy": _PROCESSES,
    "data.source.path": _CONTENT,
    "data.validation.path": _CONTENT,
    "data.loading.eval_batch_size": _SPEED,
    "data.loading.num_workers": _SPEED,
    "data.spec.cache": _SPEED,
    "data.spec.cache_dir": _SPEED,
    "model.gradient_checkpointing": _SPEED,
    "method.rollout.max_empty": "when it gives up",
    "rounds.max_empty": "when it gives up",
    "rollout.url": _SERVER,
    "rollout.requests": _SERVER,
    "rollout.server.port": _SERVER,
    "rollout.server.folder": _SERVER,
    "rollout.server.environment": _SERVER,
    "rollout.server.start_timeout": _SERVER,
}
#: Callbacks that may come, go and change: what they are -> why.
OBSERVERS: Mapping[str, str] = {
    "rlhf_lightning.callbacks.AlignmentProgressBar": _SHOWN,
    "rlhf_lightning.callbacks.GoldReward": "measures",
    "rlhf_lightning.callbacks.HFExport": "what is kept",
    "rlhf_lightning.callbacks.ImplicitRewards": "measures",
    "rlhf_lightning.callbacks.LastCheckpoint": "what is kept",
    "rlhf_lightning.callbacks.LogRatios": "measures",
    "rlhf_lightning.callbacks.NonFiniteStop": "stops a run, or leaves it as it is",
    "rlhf_lightning.callbacks.PhaseTimes": "measures",
    "rlhf_lightning.callbacks.PolicySamples": "measures",
    "rlhf_lightning.callbacks.ResponseStatistics": "measures",
    "rlhf_lightning.callbacks.RolloutFiles": "what is kept",
    "rlhf_lightning.callbacks.Throughput": "measures",
    "lightning.pytorch.callbacks.DeviceStatsMonitor": "measures",
    "lightning.pytorch.callbacks.EarlyStopping": "how long it trains",
    "lightning.pytorch.callbacks.LearningRateMonitor": "measures",
    "lightning.pytorch.callbacks.ModelCheckpoint": "what is kept",
    "lightning.pytorch.callbacks.RichProgressBar": _SHOWN,
    "lightning.pytorch.callbacks.TQDMProgressBar": _SHOWN,
    "lightning.pytorch.callbacks.Timer": "how long it trains",
}
#: With a budget of tokens a step is as many micro-batches as there are: these are then part of the run.
_CUT_BY_TOKENS = ("trainer.accumulate_grad_batches", "strategy")
#: Keys that may differ between the machines of one job: where things lie there.
_OF_MACHINE = (
    *("paths", "data.source.path", "data.validation.path", "data.loading.num_workers"),
    *("data.spec.cache", "data.spec.cache_dir", "rollout.server", "rollout.url"),
)
#: Keys of files and folders that a job computes with, and that no checkpoint of it holds.
_GUIDES = ("guidance.tuned", "guidance.untuned", "guidance.reference")
_PROMPTING = ("prompting.file", "prompting.path")
_FILES = (*_PROMPTING, *(f"{model}.steering.path" for model in ("model", "reference.source", *_GUIDES)))
#: Stands for the run's own folder, which may have been moved.
_FOLDER = "<folder of the run>"
#: Differences that a message names.
_NAMED = 8


@dataclass(frozen=True)
class Difference:
    """One key of which a folder's run and a command have different values; None: no such key."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_text(self.before)} -> {_text(self.now)}"


@dataclass(frozen=True)
class Comparison:
    """A run's configuration beside that of the command that would resume it."""

    refused: list[Difference]
    allowed: list[Difference]  #: those of ``MAY_CHANGE`` and ``OBSERVERS``


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as containers, resolved, with a name in the place of its own folder."""
    tree = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(tree, dict)
    text = json.dumps(tree, default=str)
    folder = (tree.get("paths") or {}).get("output_dir")
    if folder:
        text = re.sub(re.escape(json.dumps(str(folder))[1:-1]) + '(?=[/"])', _FOLDER, text)
    plain_tree: dict[str, Any] = json.loads(text)
    return plain_tree


def compare(before: Tree, now: Tree) -> Comparison:
    """Sort the differences of two configurations into those that a run may have and those that make it another.

    Args:
        before: of the run, as :func:`plain` gives it.
        now: of the command.
    """
    differences = list(_differences(before, now))
    allowed = [difference for difference in differences if _may_change(difference.key, before, now)]
    return Comparison([difference for difference in differences if difference not in allowed], allowed)


def between_machines(first: Tree, other: Tree) -> list[Difference]:
    """Differences that the processes of one job cannot have, not even where a resumed run may.

    Args:
        first: configuration of the first process, as :func:`plain` gives it.
        other: of another one.
    """
    return [difference for difference in _differences(first, other) if not _within(difference.key, _OF_MACHINE)]


def may_lengthen(difference: Difference) -> bool:
    """Check whether a difference may ask for steps that the run has not taken."""
    return difference.key.startswith("callbacks.") or MAY_CHANGE.get(difference.key) == _LENGTH


def listed(differences: Iterable[Difference]) -> str:
    """Differences as the part of a sentence."""
    every = [str(difference) for difference in differences]
    more = f", and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def _differences(before: Tree, now: Tree) -> Iterator[Difference]:
    one, other = dict(_leaves(before)), dict(_leaves(now))
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            yield Difference(key, one.get(key), other.get(key))


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield key, node
        return
    for name, inner in node.items():
        yield from _leaves(inner, f"{key}.{name}" if key else str(name))


def _may_change(key: str, before: Tree, now: Tree) -> bool:
    if key.startswith("callbacks."):
        name = key.split(".")[1]
        kinds = {kind for tree in (before, now) if (kind := _callback(tree, name)) is not None}
        return all(kind in OBSERVERS for kind in kinds)
    if key == "strategy.timeout":
        return True
    if _within(key, _CUT_BY_TOKENS) and any((tree.get("data") or {}).get("max_tokens") for tree in (before, now)):
        return False
    return _within(key, MAY_CHANGE)


def _within(key: str, keys: Iterable[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def _callback(tree: Tree, name: str) -> str | None:
    node = (tree.get("callbacks") or {}).get(name)
    return str(node.get("_target_")) if isinstance(node, Mapping) else None


def _text(value: Any) -> str:
    return "none" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def file_contents(cfg: DictConfig) -> dict[str, str]:
    """Digests of the files and folders that a job computes with, by their keys; what is missing has none.

    Of a run's folder what it exported counts, and nothing that it logged.
    """
    given = {key: OmegaConf.select(cfg, key) for key in _FILES}
    paths = {key: Path(str(path)).expanduser() for key, path in given.items() if path is not None}
    present = {key: path for key, path in paths.items() if path.exists()}
    return {key: digest_of(exported(path, key) if path.is_dir() else path) for key, path in present.items()}


def digest_of(path: Path) -> str:
    """Digest of a checkpoint's content, a file or a folder; the model card of a folder says nothing of its weights."""
    whole = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and file.name != "README.md":
            with file.open("rb") as handle:
                whole.update(hashlib.file_digest(handle, "blake2b").digest())
    return whole.hexdigest()


def digest(cfg: DictConfig) -> str:
    """Digest that two jobs share exactly if they compute the same, whatever their folders and the order of options.

    Two methods that are the same computation under two names (``hinge`` and ``rso_hinge``) are two jobs: a comparison
    shows each under its own.

    Returns:
        32 hexadecimal digits.
    """
    tree = computed(cfg)
    if HydraConfig.initialized():
        tree["method"] = {"name": method_name(), "options": tree.get("method")}
    return digest_of_tree(tree)


def digest_of_tree(tree: Tree) -> str:
    """Digest of containers, whatever the order of their keys: 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(tree, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def computed(cfg: DictConfig) -> dict[str, Any]:
    """Part of a configuration that decides what a job computes: without folders and outputs."""
    copy = cfg.copy()
    with open_dict(copy):
        for key in ("output_dir", "runs", "sweeps") if "paths" in copy else ():  # other options are made from them
            copy.paths[key] = f"<{key}>"
        copy.pop("hydra", None)
        if copy.get("strategy"):
            copy.strategy.pop("timeout", None)
        for name in _OUTPUT_CALLBACKS if copy.get("callbacks") else ():
            copy.callbacks.pop(name, None)
        tree = OmegaConf.to_container(copy, resolve=True, enum_to_str=True)
    assert isinstance(tree, dict)
    kept = {str(name): value for name, value in tree.items() if name not in _NOT_COMPUTED}
    return kept | ({"files": contents} if (contents := file_contents(cfg)) else {})


def method_name() -> str | None:
    """The file of ``conf/method`` that was chosen, where Hydra composed."""
    return HydraConfig.get().runtime.choices.get("method") if HydraConfig.initialized() else None
