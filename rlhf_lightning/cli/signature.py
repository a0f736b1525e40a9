"""Signatures that a configuration is held against: of what is imported, or read from source that is not."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rlhf_lightning.cli.annotations import annotations_of, type_of_default
from rlhf_lightning.cli.targets import locate
from rlhf_lightning.signatures import Definition, StandIn, UnreadableError, evaluate, is_dataclass, parameters_of


class Signature(Protocol):
    """Parameters of a call, and what each of them may be."""

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """By name, in their order."""
        ...

    def annotation(self, name: str) -> Any:
        """The annotation of a parameter, evaluated; of one without any, the type of its default."""
        ...


class ImportedSignature:
    """Signature of an object.

    Args:
        target: a class or a function.

    Raises:
        TypeError, ValueError: it is written in C and has none.
    """

    def __init__(self, target: Callable[..., Any]) -> None:
        self._target = target
        self.parameters = dict(inspect.signature(target).parameters)

    @functools.cached_property
    def _annotations(self) -> dict[str, Any]:
        return annotations_of(self._target)

    def annotation(self, name: str) -> Any:
        """The annotation of a parameter, or the type of its default."""
        return self._annotations.get(name, Any)


class ReadSignature:
    """Signature that is read from source. An annotation that cannot be read is that of the imported object.

    Args:
        definition: of a class or a function.

    Raises:
        UnreadableError: the source does not say.
    """

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._read = parameters_of(definition)
        self.parameters = {name: one.parameter for name, one in self._read.items()}

    def annotation(self, name: str) -> Any:
        """The annotation of a parameter, or the type of its default."""
        annotation, default = self._read[name].annotation, self.parameters[name].default
        if annotation is None and (kind := type_of_default(default)) is not None:
            return kind
        if annotation is None and default in (inspect.Parameter.empty, None):
            return Any
        try:
            if annotation is None:
                raise UnreadableError(f"the default of {name} is no literal")
            return evaluate(annotation.module, annotation.node)
        except UnreadableError:
            return self._imported.annotation(name)

    @functools.cached_property
    def _imported(self) -> ImportedSignature:
        return ImportedSignature(locate(self._definition.path))


def signature_of(kind: type) -> Signature:
    """Signature of a class, loaded or not."""
    return ReadSignature(kind.definition) if issubclass(kind, StandIn) else ImportedSignature(kind)


def is_value_object(kind: Any) -> bool:
    """Check whether an arm of an annotation is a dataclass, loaded or not."""
    if not inspect.isclass(kind):
        return False
    return is_dataclass(kind.definition) if issubclass(kind, StandIn) else dataclasses.is_dataclass(kind)
