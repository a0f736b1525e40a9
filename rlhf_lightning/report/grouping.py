"""Which runs are the same but for their seed, what to call them, and in which options they differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_lightning.report.reading import Run
from rlhf_lightning.report.stages import family_of, seedless

#: Callbacks that only look on; others (ema, reference_sync, the user's own) change what is computed.
_OBSERVERS = (
    "best",
    "export",
    "gold",
    "implicit_rewards",
    "last",
    "log_ratios",
    "nonfinite",
    "phases",
    "progress",
    "reference_kl",  # of older runs
    "responses",
    "rollout_files",
    "samples",
    "step_seed",
    "throughput",
)
#: Keys that say where a run lies and what it shows, not what it computes.
BOOKKEEPING = (
    "paths",
    "logger",
    "rerun",
    "allow_targets",
    "hydra",
    "optimized_metric",
    *(f"callbacks.{name}" for name in _OBSERVERS),
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "data.spec.cache",
    "data.spec.cache_dir",
    "data.num_workers",
)
_RUN = "<run>"

Options = dict[str, Any]  #: dotted key: value


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: short: the method, and what tells it from other groups of the same method.
        method: name of the method.
        family: of the method.
        options: what its runs were configured with, flat.
        runs: in the order of their seeds.
    """

    label: str
    method: str
    family: str
    options: Mapping[str, Any]
    runs: tuple[Run, ...]

    @cached_property
    def done(self) -> tuple[Run, ...]:
        """Runs that finished: the only ones whose numbers are pooled."""
        return tuple(run for run in self.runs if run.state == "done")


def flat(config: Any, prefix: str = "") -> Options:
    """Dotted keys of a nested configuration; an empty container is a value."""
    if isinstance(config, Mapping) and config:
        parts = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in config.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: config} if prefix else {}


def copies_of_the_seed(runs: Sequence[Run]) -> set[str]:
    """Keys named ``seed`` that follow the runs' own: equal to it in most runs, and for more than one seed.

    A model's or a data set's own seed that happens to be that of one run is none.
    """
    equal: dict[str, list[int | None]] = {}
    for run in runs:
        for key, value in flat(run.config).items():
            if key.endswith(".seed"):
                equal.setdefault(key, []).append(run.seed if value == run.seed else None)
    followed = {key: [seed for seed in seeds if seed is not None] for key, seeds in equal.items()}
    return {key for key, seeds in followed.items() if len(set(seeds)) > 1 and 2 * len(seeds) > len(equal[key])}


def signature(run: Run, copies: Collection[str] = ()) -> Options:
    """What a run computes: its options without the seed and its copies, bookkeeping, and its own folder.

    Args:
        run: whose.
        copies: keys that are left out where they equal the run's seed.
    """
    folders = {str(run.folder)}
    paths = run.config.get("paths")
    if isinstance(paths, Mapping) and isinstance(paths.get("output_dir"), str):
        folders.add(paths["output_dir"])
    kept = {}
    config = seedless(run.folder, copies) if run.stage else run.config
    for key, value in flat(config).items():
        copied = key in copies and value == run.seed
        if key != "seed" and not copied and not _is_bookkeeping(key):
            kept[key] = _without_folder(value, folders)
    # The weights that a run starts from count; which checkpoint of its own it was resumed from does not.
    if (start := kept.get("ckpt_path")) in (None, "auto", "last") or str(start).startswith(_RUN):
        kept.pop("ckpt_path", None)
    return kept


def group_runs(runs: Sequence[Run], families: Mapping[str, str] | None = None) -> list[Group]:
    """Pool the seeds.

    Args:
        runs: of a report.
        families: method -> family, for colours; others take the class of the method's module.

    Returns:
        Groups in the order of their first run; labels are unique.
    """
    pools: dict[Any, list[Run]] = {}
    options: dict[Any, Options] = {}
    copies = copies_of_the_seed(runs)
    for run in runs:
        mine = signature(run, copies)
        # Without a configuration nothing says that two runs are the same.
        key = (run.stage or run.title, _hashable(mine)) if mine else run.folder
        pools.setdefault(key, []).append(run)
        options[key] = mine
    methods = [_method(pool[0]) for pool in pools.values()]
    titles = [pool[0].stage or pool[0].title for pool in pools.values()]
    labels = labels_of(titles, list(options.values()), [pool[0].name for pool in pools.values()])
    families = families or {}
    return [
        Group(label, method, _family(pool[0], families), options[key], tuple(sorted(pool, key=_by)))
        for label, method, (key, pool) in zip(labels, methods, pools.items(), strict=True)
    ]


def _method(run: Run) -> str:
    """The method; of a stage that has none, such as one of ``rlhf generate``, what its name begins with."""
    return run.method if run.config.get("method") or not run.stage else family_of(run.stage)


def _family(run: Run, families: Mapping[str, str]) -> str:
    """The family of the method; a stage without one is of its own."""
    if run.stage and not run.config.get("method"):
        return family_of(run.stage)
    return families.get(run.method) or run.module or "other"


def labels_of(methods: Sequence[str], options: Sequence[Options], names: Sequence[str]) -> list[str]:
    """A short label a group: ``dpo``, or ``dpo beta=0.1`` where other groups use the same method.

    Where many options differ together, as many are named as it takes to tell the groups apart.

    Args:
        methods: of each group, with its rounds.
        options: of each group.
        names: of each group's first run, to tell groups apart that nothing else does.
    """
    labels = []
    for index, method in enumerate(methods):
        same = [options[other] for other, name in enumerate(methods) if name == method]
        keys = telling(same)
        named = short_names(keys)
        parts = [f"{named[key]}={_brief(options[index][key])}" for key in keys if key in options[index]]
        labels.append(" ".join([method, *parts]))
    return [f"{label} ({names[index]})" if labels.count(label) > 1 else label for index, label in enumerate(labels)]


def differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that not all have with the same value, in the order in which they appear."""
    keys = dict.fromkeys(key for one in options for key in one)
    missing = object()
    return [key for key in keys if any(one.get(key, missing) != options[0].get(key, missing) for one in options)]


def telling(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fewest keys, found greedily, whose values are different for all.

    Of equally telling ones those of the method are preferred, then those that all have and that are no containers.
    """
    keys = differing(options)
    rank = {
        key: (not key.startswith("method."), not _simple(options, key), key.endswith("_target_"), place)
        for place, key in enumerate(keys)
    }
    chosen: list[str] = []
    apart = 1
    while apart < len(options):
        counts = {key: _apart(options, [*chosen, key]) for key in keys if key not in chosen}
        best = max(counts, key=lambda key: (counts[key], [-int(part) for part in rank[key]]), default=None)
        if best is None or counts[best] == apart:
            break
        chosen.append(best)
        apart = counts[best]
    return sorted(chosen, key=keys.index)


def _simple(options: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(isinstance(one.get(key), (int, float, str)) for one in options)


def _apart(options: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({tuple(repr(one[key]) if key in one else None for key in keys) for one in options})


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, with as many parts before it as make it unique.

    ``method.loss.beta -> beta``; a ``_target_`` is called by what it is the target of.
    """
    parts = {key: [part for part in key.split(".") if part != "_target_"] or [key] for key in keys}
    short = {}
    for key, mine in parts.items():
        for length in range(1, len(mine) + 1):
            tail = mine[-length:]
            if sum(other[-length:] == tail for other in parts.values()) == 1:
                break
        short[key] = ".".join(tail)
    return short


def plain(value: Any) -> str:
    """A value as a person would write it: ``1e-05``, ``dpo`` for the path of a class."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value.startswith("rlhf_lightning."):
        return value.rpartition(".")[2]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(plain(inner) for inner in value)}]"
    return str(value)


def _brief(value: Any, most: int = 28) -> str:
    """A value in a label: of a path its end."""
    text = plain(value)
    text = "/".join(text.split("/")[-2:]) if isinstance(value, str) else text
    return text if len(text) <= most else f"{text[: most - 1]}…"


def by_numeric_key(groups: Sequence[Group], least: int = 3) -> list[str]:
    """Keys whose number alone tells several groups of a method apart: those of a sweep over a value.

    Args:
        groups: of a report.
        least: fewest values of a key within one method that make a curve.
    """
    found: dict[str, None] = {}
    for method in dict.fromkeys(group.method for group in groups):
        mine = [group.options for group in groups if group.method == method]
        for key in differing(mine):
            values = [one.get(key) for one in mine]
            numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
            if numeric and len(set(values)) >= least:
                found[key] = None
    return list(found)


def _is_bookkeeping(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in BOOKKEEPING)


def _without_folder(value: Any, folders: set[str]) -> Any:
    if isinstance(value, list):
        return [_without_folder(inner, folders) for inner in value]
    if isinstance(value, str):
        for folder in folders:
            if value == folder or value.startswith(folder.rstrip("/") + "/"):
                return _RUN + value[len(folder.rstrip("/")) :]
    return value


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _hashable(inner)) for key, inner in value.items()))
    if isinstance(value, list):
        return ("list", *map(_hashable, value))
    return (type(value).__name__, value) if isinstance(value, bool) else repr(value)


def _by(run: Run) -> tuple[int, Path]:
    return (run.seed if run.seed is not None else -1, run.folder)
