"""Check of every ``_target_`` of a configuration: a walk over its nodes that finds the object of each name.

Nothing that a configuration names is run here, and no module is imported but our own, the public ones of a role
(``cli.roles``), and those that the user has allowed.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.errors import closest
from rlhf_lightning.cli.roles import ROLE_BY_KEY, Role, role_of

#: Name of our package.
OURS = "rlhf_lightning"
#: Of ours, what starts processes and writes files by design.
_NEVER = ("rlhf_lightning.cli", "rlhf_lightning.quickstart")
_DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
#: Packages that hold more than anybody means to allow.
_TOO_MUCH = ("builtins", "hydra", "lightning", "omegaconf", "peft", "pytorch_lightning", "torch", "transformers")


class _CurrentFolder(MetaPathFinder):
    """Finds packages that the user has allowed in the folder where the program was started.

    It is asked last, so that a file there never takes the place of an installed package.
    """

    def __init__(self) -> None:
        self.folder = Path.cwd()
        self.packages: set[str] = set()

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """The spec of an allowed package; parts of it are found by way of its own path."""
        return PathFinder.find_spec(fullname, [str(self.folder)]) if fullname in self.packages else None


_CURRENT_FOLDER = _CurrentFolder()


def allow_current_folder(allowed: Iterable[str]) -> None:
    """Let what the user has allowed be imported from the current folder, where it is installed nowhere.

    Args:
        allowed: packages, or parts of one (:func:`rlhf_lightning.cli.trust.allowed_targets`).
    """
    _CURRENT_FOLDER.folder = Path.cwd()
    _CURRENT_FOLDER.packages = {name.partition(".")[0] for name in allowed}
    if _CURRENT_FOLDER not in sys.meta_path:
        sys.meta_path.append(_CURRENT_FOLDER)


class TargetError(ValueError):
    """A ``_target_`` that may not stand where it stands; the text follows ``<key>._target_: ``."""


def targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a ``_target_``, with its full key, outermost first; items of lists by number in brackets."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, inner in node.items():
            yield from targets(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(node, (list, tuple)):
        for position, inner in enumerate(node):
            yield from targets(inner, f"{key}[{position}]")


def locate(path: str) -> Any:
    """The object that a dotted path names.

    Raises:
        ImportError: there is none.
    """
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        name = ".".join(parts[:cut])
        try:
            named: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                continue
            missing = str(error.name).partition(".")[0]
            if not (Path.cwd() / f"{missing}.py").exists() and not (Path.cwd() / missing).is_dir():
                raise
            raise ImportError(
                f"{parts[0]} imports {missing}, which the current folder has: allow it as well"
            ) from error
        for position, part in enumerate(parts[cut:], start=cut):
            named = _attribute(named, part, ".".join(parts[:position]))
        return named
    raise ImportError(f"no package {parts[0]!r} is installed")


def resolve(key: str, path: Any, allowed: Sequence[str], *, within: bool = False) -> Any:
    """Find the object of a ``_target_``, if its key may have it.

    Args:
        key: of the node.
        path: the value of ``_target_``.
        allowed: packages, or parts of one, that the user has allowed: what they define may stand at any place.
        within: the node is an option of something that the user has allowed: anything of ours that has some role may
            stand there.

    Raises:
        TargetError: it may not stand there.
        ImportError: there is no such thing.
    """
    if not may_be_named(path):
        raise TargetError(_foreign(path, role_of(key)))
    if inside(path, allowed):
        return _users(key, path, allowed)
    role = role_of(key)
    roles = [role] if role is not None else [role for _, role in ROLE_BY_KEY] if within else []
    if not roles:
        raise TargetError(f"{path} would be made here, where only plain values belong")
    for candidate in roles:
        named = _of_ours(path, candidate) if inside(path, (OURS,)) else _public(path, candidate)
        if named is not None:
            return named
    if not inside(path, (OURS,)):
        raise TargetError(_foreign(path, role))
    locate(path)  # a misspelt name of ours is told so
    raise TargetError(f"{path} is not {role.noun if role else 'made by a yaml'}, which is what belongs here")


def _users(key: str, path: str, allowed: Sequence[str]) -> Any:
    named = locate(path)
    home = getattr(named, "__module__", None) or ""
    if not callable(named) or not inside(home, allowed):
        raise TargetError(_foreign(f"{path} (which comes from {home or type(named).__name__})", role_of(key), home))
    return named


def _of_ours(path: str, role: Role) -> Any | None:
    """A public name of one of our modules that has a role; None where it has not."""
    module, _, name = path.rpartition(".")
    if not any(inside(module, (root,)) or root.startswith(module + ".") for root in role.ours):
        return None
    try:
        named = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is not None and inside(error.name, (OURS,)):
            return None
        raise
    if named is None or not inside(getattr(named, "__module__", None) or "", role.ours):
        return None
    return named if role.fits(named, {base: locate(base) for base in role.bases}) else None


def _public(path: str, role: Role) -> Any | None:
    """A class of a public module of a role; None for anything else, which is not imported."""
    prefix, _, name = path.rpartition(".")
    for public in role.public:
        if not inside(prefix, (public,)):
            continue
        try:
            module = importlib.import_module(public)
        except ModuleNotFoundError as error:
            if error.name is not None and inside(public, (error.name,)):
                raise ImportError(f"no package {error.name!r} is installed") from None
            raise
        named = getattr(module, name, None)
        if named is None and prefix == public:
            _attribute(module, name, public)
        home = getattr(named, "__module__", None)
        named_so = inspect.isclass(named) and prefix in (public, home)
        if named_so and role.fits(named, {base: locate(base) for base in role.bases}):
            return named
    return None


def _attribute(owner: Any, name: str, path: str) -> Any:
    if not hasattr(owner, name):
        close = closest(name, [other for other in dir(owner) if not other.startswith("_")])
        raise ImportError(f"{path} has no {name!r}" + (f"; did you mean {close}?" if close else ""))
    return getattr(owner, name)


def may_be_named(path: Any) -> bool:
    """Check whether a value of ``_target_`` is a dotted path outside of what starts processes and writes files."""
    return isinstance(path, str) and _DOTTED.fullmatch(path) is not None and not inside(path, _NEVER)


def inside(path: str, packages: Sequence[str]) -> bool:
    """Check whether a dotted path is one of some packages or modules, or lies in one."""
    return any(path == root or path.startswith(root + ".") for root in packages)


def _foreign(path: Any, role: Role | None, home: str | None = None) -> str:
    """Explain why a name from another package is refused, and how to allow it."""
    allowed = [OURS, *(role.public if role else ())]
    text = f"{path} is not from a package that a yaml may use ({', '.join(allowed)})"
    if role is not None:
        text += f", or not {role.noun}"
    package = str(path if home is None else home).partition(".")[0]
    if not package.isidentifier() or package in (OURS, *_TOO_MUCH) or package in sys.stdlib_module_names:
        return f"{text}."
    return f"{text}. If you trust it, allow its package on the command line: 'allow_targets=[{package}]'"
