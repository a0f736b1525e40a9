"""Options and ``_target_`` names under the names that they had before: what they are called now, for one version.

An old name counts wherever an option may stand: on the command line, in a yaml of the user's, in the folder of a run.
It is moved once the configuration is composed, so everything behind that knows the new name alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.targets import targets
from rlhf_lightning.renamed import ARGUMENTS

_ABSENT = object()

#: A ``_target_`` under the module that it was in -> its public name.
MOVED: Mapping[str, str] = {
    f"rlhf_lightning.models.{module}.{name}": f"rlhf_lightning.models.{name}"
    for module, name in (
        ("critic", "ActorCritic"),
        ("gated", "GatedScorer"),
        ("scorer", "Scorer"),
        ("value_actor", "ValueActor"),
    )
}


def with_new_names(cfg: DictConfig, *, warn: bool = True, given: Collection[str] | None = ()) -> DictConfig:
    """Move options of old names, and rename targets that have moved, in place.

    A value under an old name counts above a default under the new name; options of a mapping are moved one by one.

    Args:
        cfg: composed, or read from the folder of a run.
        warn: say what an old name is now; not of what nobody typed.
        given: keys that the user gave on the command line; None: every key of the configuration was given.

    Returns:
        The same configuration.

    Raises:
        ConfigError: an option was given under both names; the message has both with their values.
    """
    for key, made in targets(OmegaConf.to_container(cfg, resolve=False)):
        if (earlier := str(made["_target_"])) in MOVED:
            with open_dict(cfg):
                OmegaConf.update(cfg, f"{key}._target_", MOVED[earlier])
            if warn:
                _warn(earlier, MOVED[earlier])
    while (move := next(_moves(OmegaConf.to_container(cfg, resolve=False)), None)) is not None:
        old, new, value = move
        _refuse_both(cfg, old, new, value, given)
        node, _, name = old.rpartition(".")
        with open_dict(cfg):
            del OmegaConf.select(cfg, node)[name]
            OmegaConf.update(cfg, new, value, merge=True, force_add=True)
        if warn:
            _warn(old, new)
    return cfg


def names_of(keys: Iterable[str]) -> frozenset[str]:
    """Keys, and what each of them may be called now.

    Args:
        keys: of options that a user gave, whatever class they are options of.
    """
    return frozenset(name for key in keys for name in (key, *_new_names(key)))


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name counts in this version only", FutureWarning, stacklevel=3)


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys of a value with what they hold; of a plain value, its own."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}")
    else:
        yield key, value


def _refuse_both(cfg: DictConfig, old: str, new: str, value: Any, given: Collection[str] | None) -> None:
    for former, content in leaves(value, old):
        present = new + former.removeprefix(old)
        other = OmegaConf.select(cfg, present, default=_ABSENT)
        if present in given if given is not None else other is not _ABSENT:
            raise ConfigError(
                f"{former}={content} and {present}={other}: the first is the former name of the second, and both are "
                f"given. Leave {former} out"
            )


def _moves(tree: Any) -> Iterator[tuple[str, str, Any]]:
    """Old key, new key and value of each option under an old name, outermost first."""
    for key, node in targets(tree):
        for old, new in ARGUMENTS.get(str(node["_target_"]), {}).items():
            if old in node and "[" not in key:
                yield f"{key}.{old}", f"{key}.{new}", node[old]


def _new_names(key: str) -> Iterator[str]:
    parts = key.split(".")
    for at, part in enumerate(parts):
        for names in ARGUMENTS.values():
            if part in names:
                yield ".".join([*parts[:at], names[part], *parts[at + 1 :]])
