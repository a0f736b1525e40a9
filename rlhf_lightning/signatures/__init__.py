"""Signatures and annotations read from source, where an import would take seconds: torch, Lightning, transformers.

What the source does not say for certain is not guessed (:class:`UnreadableError`): then the object has to be imported.
"""

from rlhf_lightning.signatures.annotations import StandIn, evaluate
from rlhf_lightning.signatures.classes import (
    Annotated,
    is_dataclass,
    is_protocol,
    is_subclass,
    lineage,
    maker_of,
    methods_of,
    parameters_of,
)
from rlhf_lightning.signatures.modules import Definition, Expression, UnreadableError, definition_of, look_up

__all__ = [
    "Annotated",
    "Definition",
    "Expression",
    "StandIn",
    "UnreadableError",
    "definition_of",
    "evaluate",
    "is_dataclass",
    "is_protocol",
    "is_subclass",
    "lineage",
    "look_up",
    "maker_of",
    "methods_of",
    "parameters_of",
]
