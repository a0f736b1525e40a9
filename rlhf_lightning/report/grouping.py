"""Grouping of runs that differ only in their seed, labels of the groups, and options in which they differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_lightning.report.reading import Run
from rlhf_lightning.report.stages import family_of, seedless

#: Callbacks that only observe; others (ema, reference_sync, the user's own) change what is computed.
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
#: Keys that set where a run is stored and what it shows, not what it computes.
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
    "data.loading.num_workers",
    "data.num_workers",
)
_RUN = "<run>"
#: Maximum number of options that every label of a method names; of more, a label names those with unusual values.
_NAMED = 3

Options = dict[str, Any]  #: dotted key: value


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        label: a short label: the method, and the options that distinguish it from other groups of the same method.
        method: name of the method.
        family: family of the method.
        options: flat configuration of the runs.
        runs: in the order of their seeds.
    """

    label: str
    method: str
    family: str
    options: Mapping[str, Any]
    runs: tuple[Run, ...]

    @cached_property
    def done(self) -> tuple[Run, ...]:
        """Finished runs, the only ones whose numbers are pooled."""
        return tuple(run for run in self.runs if run.state == "done")


def flat(config: Any, prefix: str = "") -> Options:
    """Dotted keys of a nested configuration; an empty container is a value."""
    if isinstance(config, Mapping) and config:
        parts = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in config.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: config} if prefix else {}


def copies_of_the_seed(runs: Sequence[Run]) -> set[str]:
    """Keys named ``seed`` that follow the seed of the run: equal to it in most runs, and for more than one seed.

    The seed of a model or a data set that happens to equal the seed of one run is not a copy.
    """
    equal: dict[str, list[int | None]] = {}
    for run in runs:
        for key, value in flat(run.config).items():
            if key.endswith(".seed"):
                equal.setdefault(key, []).append(run.seed if value == run.seed else None)
    followed = {key: [seed for seed in seeds if seed is not None] for key, seeds in equal.items()}
    return {key for key, seeds in followed.items() if len(set(seeds)) > 1 and 2 * len(seeds) > len(equal[key])}


def signature(run: Run, copies: Collection[str] = ()) -> Options:
    """Options that define what a run computes: without the seed and its copies, bookkeeping, and the run's folder.

    Args:
        run: the run.
        copies: keys that are left out if they equal the run's seed.
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
    # The weights that a run starts from count; the checkpoint that it was resumed from does not.
    if (start := kept.get("ckpt_path")) in (None, "auto", "last") or str(start).startswith(_RUN):
        kept.pop("ckpt_path", None)
    return kept


def group_runs(runs: Sequence[Run], families: Mapping[str, str] | None = None) -> list[Group]:
    """Pool the seeds.

    Args:
        runs: runs of a report.
        families: method -> family, for colours; other methods use the class of their module.

    Returns:
        Groups in the order of their first run; labels are unique.
    """
    pools: dict[Any, list[Run]] = {}
    options: dict[Any, Options] = {}
    copies = copies_of_the_seed(runs)
    for run in runs:
        computed = signature(run, copies)
        # Without a configuration, two runs cannot be recognised as the same.
        key = (run.stage or run.title, _hashable(computed)) if computed else run.folder
        pools.setdefault(key, []).append(run)
        options[key] = computed
    methods = [_method(pool[0]) for pool in pools.values()]
    titles = [pool[0].stage or pool[0].title for pool in pools.values()]
    labels = labels_of(titles, list(options.values()), [pool[0].name for pool in pools.values()])
    families = families or {}
    return [
        Group(label, method, _family(pool[0], families), options[key], tuple(sorted(pool, key=_by)))
        for label, method, (key, pool) in zip(labels, methods, pools.items(), strict=True)
    ]


def _method(run: Run) -> str:
    """The method; for a stage without one, such as ``rlhf generate``, the beginning of the stage's name."""
    return run.method if run.config.get("method") or not run.stage else family_of(run.stage)


def _family(run: Run, families: Mapping[str, str]) -> str:
    """The family of the method; a stage without a method is a family of its own."""
    if run.stage and not run.config.get("method"):
        return family_of(run.stage)
    return families.get(run.method) or run.module or "other"


def labels_of(methods: Sequence[str], options: Sequence[Options], names: Sequence[str]) -> list[str]:
    """Return a short label per group: ``dpo``, or ``dpo beta=0.1`` if other groups use the same method.

    If several options differ together, a label has only as many as are needed to distinguish the groups. If more than
    three are needed, as where each of many switches is tried, a label has those whose value is not the most common one.

    Args:
        methods: method of each group, with its rounds.
        options: options of each group.
        names: name of each group's first run, used if nothing else distinguishes two groups.
    """
    labels = []
    for index, method in enumerate(methods):
        same = [options[other] for other, name in enumerate(methods) if name == method]
        keys = distinguishing_keys(same)
        named = short_names(keys)
        values = options[index]
        if len(keys) > _NAMED:
            usual = {key: _most_common([one.get(key) for one in same]) for key in keys}
            keys = [key for key in keys if repr(values.get(key)) != usual[key]]
            method = method if keys else f"{method} (usual values)"
        parts = [f"{named[key]}={_brief(values[key])}" for key in keys if key in values]
        labels.append(" ".join([method, *parts]))
    return [f"{label} ({names[index]})" if labels.count(label) > 1 else label for index, label in enumerate(labels)]


def differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same everywhere, in order of appearance."""
    keys = dict.fromkeys(key for one in options for key in one)
    missing = object()
    return [key for key in keys if any(one.get(key, missing) != options[0].get(key, missing) for one in options)]


def distinguishing_keys(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choose greedily the fewest keys whose values distinguish all groups.

    Of equally good keys, those of the method are preferred, then plain values that all groups have.
    """
    keys = differing(options)
    rank = {
        key: (not key.startswith("method."), not _simple(options, key), key.endswith("_target_"), position)
        for position, key in enumerate(keys)
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
    """Shorten each dotted key to its last parts, as many as make it unique.

    ``method.loss.beta -> beta``; a ``_target_`` takes the name of its parent.
    """
    parts = {key: [part for part in key.split(".") if part != "_target_"] or [key] for key in keys}
    short = {}
    for key, words in parts.items():
        for length in range(1, len(words) + 1):
            tail = words[-length:]
            if sum(other[-length:] == tail for other in parts.values()) == 1:
                break
        short[key] = ".".join(tail)
    return short


def plain(value: Any) -> str:
    """Format a value as a person would write it: ``1e-05``, ``dpo`` for the path of a class."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value.startswith("rlhf_lightning."):
        return value.rpartition(".")[2]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(plain(inner) for inner in value)}]"
    return str(value)


def shortened(label: str, most: int = 48) -> str:
    """A label of at most that many characters; a longer one is cut and marked."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _most_common(values: Sequence[Any]) -> str:
    """The most common value as text, of equally common ones the first."""
    texts = [repr(value) for value in values]
    return max(dict.fromkeys(texts), key=texts.count)


def _brief(value: Any, most: int = 28) -> str:
    """Format a value for a label; a path is shortened to its end."""
    text = plain(value)
    text = "/".join(text.split("/")[-2:]) if isinstance(value, str) else text
    return shortened(text, most)


def by_numeric_key(groups: Sequence[Group], least: int = 3) -> list[str]:
    """Keys with different numbers in groups of one method, as in a sweep over a value.

    Args:
        groups: groups of a report.
        least: minimum number of values within one method for a curve.
    """
    numeric_keys: dict[str, None] = {}
    for method in dict.fromkeys(group.method for group in groups):
        method_options = [group.options for group in groups if group.method == method]
        for key in differing(method_options):
            values = [one.get(key) for one in method_options]
            numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
            if numeric and len(set(values)) >= least:
                numeric_keys[key] = None
    return list(numeric_keys)


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
