"""Targets of a configuration that are known from source alone, so that a misspelt option is told before torch loads.

Only what is certain counts: a public class or function that has the role of its key. Everything else, what is refused
too, is left to :func:`rlhf_lightning.cli.targets.resolve`, which imports.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.cli.roles import Role, role_of
from rlhf_lightning.cli.signature import ReadSignature
from rlhf_lightning.cli.targets import OURS, inside, may_be_named
from rlhf_lightning.signatures import (
    Definition,
    Expression,
    UnreadableError,
    definition_of,
    is_protocol,
    is_subclass,
    lineage,
    look_up,
    maker_of,
    methods_of,
)

#: Class whose objects make decorators that declare a function's kind; its first argument is that kind.
_DECLARED = "rlhf_lightning.options.Declared"


def read_target(key: str, path: Any, allowed: Sequence[str]) -> ReadSignature | None:
    """The signature of a ``_target_``, if source says that it may stand at its key.

    Args:
        key: of the node.
        path: the value of ``_target_``.
        allowed: packages, or parts of one, that the user has allowed: those are imported.
    """
    role = role_of(key)
    if role is None or not may_be_named(path) or inside(path, allowed):
        return None
    try:
        definition = definition_of(path)
        named_so = _is_ours(path, definition, role) if inside(path, (OURS,)) else _is_public(path, definition, role)
        return ReadSignature(definition) if named_so and _fits(definition, role) else None
    except UnreadableError:
        return None


def _is_ours(path: str, definition: Definition, role: Role) -> bool:
    module = path.rpartition(".")[0]
    homes = any(inside(module, (root,)) or root.startswith(f"{module}.") for root in role.ours)
    return homes and inside(definition.module.name, role.ours)


def _is_public(path: str, definition: Definition, role: Role) -> bool:
    prefix, _, name = path.rpartition(".")
    for public in role.public:
        if inside(prefix, (public,)) and prefix in (public, definition.module.name):
            return isinstance(definition.node, ast.ClassDef) and definition_of(f"{public}.{name}") is definition
    return False


def _fits(definition: Definition, role: Role) -> bool:
    """Check as :meth:`Role.fits` does."""
    if isinstance(definition.node, ast.ClassDef):
        return any(_is_a(definition, definition_of(base)) for base in role.bases)
    if role.declares is not None and role.declares in _declared(definition):
        return True
    return not definition.name.startswith("_") and bool({definition.module.name, definition.path} & set(role.functions))


def _is_a(definition: Definition, base: Definition) -> bool:
    """Check whether a class has a base, or every method of a protocol."""
    if not is_protocol(base):
        return is_subclass(definition, base)
    required = {name for name in methods_of(base) if name == "__call__" or not name.startswith("_")}
    for owner in lineage(definition):
        if not required:
            break
        required -= set(methods_of(owner))
    return not required and bool(list(methods_of(base)))


def _declared(definition: Definition) -> list[Any]:
    """Kinds that decorators declare a function to be of."""
    kinds = []
    for decorator in definition.node.decorator_list:
        if not isinstance(decorator, ast.Name):
            continue
        reached = look_up(definition.module, decorator.id)
        if isinstance(reached, Expression) and isinstance(reached.node, ast.Attribute):
            maker = maker_of(reached)
            if maker is not None and maker[0].path == _DECLARED and reached.node.attr == "function":
                kinds += [ast.literal_eval(argument) for argument in maker[1].args[:1]]
    return kinds
