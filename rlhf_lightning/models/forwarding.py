"""Arguments of a transformers model's ``forward``, by their names in the installed release.

transformers renames arguments and hands on what it does not know without a word. So an argument is looked for by every
name it has had, and a model that lacks one which matters is computed in another way that is right, and reported once.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

logger = logging.getLogger(__name__)

#: Names of the argument that takes keys and values: since transformers 5.24, and before.
CACHE_NAMES = ("cache", "past_key_values")

_reported: set[str] = set()


def takes(model: Any, name: str) -> bool:
    """Return whether a model's ``forward`` declares an argument, and so does something with it."""
    return name in inspect.signature(model.forward).parameters


def _accepts(model: Any, name: str) -> bool:
    """Return whether a model's ``forward`` can be given an argument, which its layers or its decorators may read."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def cache_name(model: Any) -> str | None:
    """The argument of a model's ``forward`` that takes a cache of keys and values; None where it has none."""
    return next((name for name in CACHE_NAMES if takes(model, name)), None)


def without_router_loss(model: Any) -> dict[str, bool]:
    """Options under which a mixture of experts makes no auxiliary loss, whatever its configuration asks for.

    transformers computes that loss over the tokens of one call and under that call's mask: while a response is decoded
    the two have different lengths, and in training it would be a loss that nobody adds.
    """
    asked = asks_for_router_loss(model) and _accepts(model, "output_router_logits")
    return {"output_router_logits": False} if asked else {}


def asks_for_router_loss(model: Any) -> bool:
    """Return whether a model's configuration asks for the auxiliary loss of its router (``output_router_logits``)."""
    return bool(getattr(getattr(model, "config", None), "output_router_logits", False))


def report_router_loss(model: Any) -> None:
    """Report a model that is trained without the auxiliary loss that its configuration asks for.

    It is no method's: its means over the tokens of a call are multiplied with one another, so it would depend on how a
    step is cut into micro-batches and processes.
    """
    if asks_for_router_loss(model):
        report_once(
            model,
            "asks for the auxiliary loss of its router (output_router_logits)",
            "no method adds it, so training does not keep the load of its experts balanced",
        )


def plain_options(model: Any) -> dict[str, bool]:
    """Options under which a model computes its logits or states and nothing beside them."""
    return ({"use_cache": False} if _accepts(model, "use_cache") else {}) | without_router_loss(model)


def report_every_position(model: Any) -> None:
    """Report a model whose ``forward`` cannot be told which positions' logits are wanted; see :func:`report_once`."""
    report_once(
        model, "has no argument logits_to_keep", "the logits of every position are computed, and kept in training"
    )


def report_once(model: Any, reason: str, cost: str) -> None:
    """Log a warning that names a model, why it is computed in a slower way, and what that costs; each once."""
    text = f"{model.name_or_path or type(model).__name__} {reason}: {cost}"
    if text not in _reported:
        _reported.add(text)
        logger.warning("%s", text)
