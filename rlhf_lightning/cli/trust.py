"""Options that count only if the user has given them: on the command line, or in the environment.

A yaml, an experiment, a ``--config-dir`` and the folder of a run may come from anybody. So they may not say which code
is trusted, nor what becomes a command line, an environment or code elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from rlhf_lightning.cli.renamed import names_of

#: Packages that a ``_target_`` may name, separated by commas; as ``allow_targets`` of every command.
ALLOW = "RLHF_ALLOW_TARGETS"
#: Keys, each with everything below it, and what a value becomes; ``*`` is any name.
COMMANDED: Mapping[str, str] = {
    "allow_targets": "code that is trusted",
    "logger.*.settings": "settings of a service, such as the program that it starts",
    "benchmark": "a task, whose yaml may name code",
    "harness.folder": "tasks, whose yaml may name code",
    "rollout.environment": "the environment of a process",
    "rollout.arguments": "the command line of a process",
    "rollout.server.environment": "the environment of a process",
    "rollout.server.arguments": "the command line of a process",
    "rollout.options": "arguments of the engine, some of which load code",
}


def allowed_targets(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Packages whose names may be a ``_target_`` beside ours: ``allow_targets``, and those of the environment."""
    named = [*(tree.get("allow_targets") or ()), *os.environ.get(ALLOW, "").split(",")]
    return tuple(dict.fromkeys(name.strip() for name in map(str, named) if name.strip()))


def uncommanded(tree: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[str]:
    """Problems of values that stand in a yaml and count only on the command line.

    Args:
        tree: a resolved configuration.
        overrides: the user's.
    """
    given = names_of(commanded(overrides))
    for key, becomes in COMMANDED.items():
        for leaf, value in _below(tree, key.split(".")):
            if not is_commanded(leaf, given):
                hint = f", or put it into {ALLOW}" if key == "allow_targets" else ""
                yield (
                    f"{leaf}: {value!r} stands in a yaml, and what becomes {becomes} counts only on the command line: "
                    f"give {key}=... there{hint}"
                )


def commanded(overrides: Sequence[str]) -> frozenset[str]:
    """Keys that overrides in Hydra's grammar give a value: of a mapping its own, since the rest of a node stays.

    The choice of a group's file (``rollout=vllm``) gives none to what the file, or another, says below it.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    given = [override for override in parsed if not override.is_delete()]
    return frozenset(key for override in given for key in _given(str(override.key_or_group), override.value()))


def _given(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield key
        return
    for name, inner in value.items():
        yield from _given(f"{key}.{name.text if isinstance(name, QuotedString) else name}", inner)


def is_commanded(leaf: str, given: frozenset[str]) -> bool:
    """Check whether a leaf, or the list that it is in, is among the keys that were given."""
    return any(leaf == key or leaf.startswith(f"{key}[") for key in given)


def may_be_given(key: str) -> bool:
    """Check whether a key may be given a value elsewhere than on the command line."""
    patterns = [re.escape(pattern).replace(r"\*", r"[^.]+") + r"(?:[.\[].*)?" for pattern in COMMANDED]
    return not any(re.fullmatch(pattern, key) for pattern in patterns)


def _below(node: Any, parts: Sequence[str], key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves below every key that fits the parts of a pattern."""
    if not parts:
        yield from leaves(node, key)
    elif isinstance(node, Mapping):
        for name in node if parts[0] == "*" else {parts[0]} & set(node):
            yield from _below(node[name], parts[1:], f"{key}.{name}" if key else str(name))


def leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value that is not null of a tree, with its full key."""
    if isinstance(node, Mapping):
        for name, inner in node.items():
            yield from leaves(inner, f"{key}.{name}")
    elif isinstance(node, (list, tuple)):
        for position, inner in enumerate(node):
            yield from leaves(inner, f"{key}[{position}]")
    elif node is not None:
        yield key, node
