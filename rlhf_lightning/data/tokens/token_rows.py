"""Rows with tokens: responses that a model drew are not tokenised from text again.

Such a row is a group of one kind, as ``data.tokens.selected_groups`` writes it::

    {"kind": "preference", "prompt_ids": [5, 9], "response_ids": [[7, 2], [8, 2]], "margin": 0.5,
     "numbers": {"win_probability": [0.8, 0.2]}, "scored": [[true, true], null]}

``margin``, ``numbers`` (one for each response, by name) and ``scored`` (null: every token) are optional. Other columns
are for people. The text is read instead where the row is of another kind than the method's, and where the method draws
its own responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.rows.fields import Fields
from rlhf_lightning.data.rows.problems import ProblemKind, RowError
from rlhf_lightning.data.tokens.encode import Encoded

#: Models have rows for more ids than their tokenizers have tokens, so only ids that do not fit in 32 bits are refused.
_LARGEST = 2**31 - 1
#: Name of the format of such rows in reports.
TOKEN_IDS = "token_ids"


def has_tokens(values: Mapping[str, Any], kind: str) -> bool:
    """Return whether a row has the tokens of a group of this kind."""
    return values.get("kind") == kind and "prompt_ids" in values and "response_ids" in values


def group_of(values: Mapping[str, Any]) -> tuple[Encoded, dict[str, list[float]], float | None]:
    """A row's tokens, its numbers by name, and its margin.

    Args:
        values: of a row that :func:`has_tokens`.

    Raises:
        RowError: a column holds a value of the wrong type, or a pair's responses are equal.
    """
    prompt, responses = values["prompt_ids"], _listed(values, "response_ids")
    for name, ids in (("prompt_ids", prompt), *((f"response_ids[{at}]", ids) for at, ids in enumerate(responses))):
        if not _are_ids(ids):
            raise RowError(ProblemKind.TYPE, f"{name!r} must be a list of token ids")
    masks = _listed(values, "scored") if values.get("scored") else [None] * len(responses)
    full_masks = [[True] * len(ids) if mask is None else mask for ids, mask in zip(responses, masks, strict=False)]
    if [len(ids) for ids in responses] != [len(mask) for mask in full_masks]:
        raise RowError(ProblemKind.TYPE, "'scored' must be true or false for every token of 'response_ids'")
    if KINDS[values["kind"]].pair and responses[0] == responses[1]:
        raise RowError(ProblemKind.IDENTICAL, f"both have the same {len(responses[0])} tokens")
    fields, numbers = Fields(values, {}), values.get("numbers") or {}
    if not isinstance(numbers, Mapping):
        raise fields.wrong("numbers", "an object of lists, by name", numbers)
    by_name = {name: Fields(numbers, {}).numbers(name) for name in numbers}
    margin = fields.number("margin") if fields.has("margin") else None
    made = Encoded(list(prompt), [list(ids) for ids in responses], [list(map(bool, mask)) for mask in full_masks])
    return made, by_name, margin


def _listed(values: Mapping[str, Any], name: str) -> Sequence[Any]:
    """A column that holds a list of lists."""
    listed = values[name]
    if not isinstance(listed, Sequence) or not listed or any(isinstance(item, str | Mapping) for item in listed):
        raise Fields(values, {}).wrong(name, "a list of lists, one a response", listed)
    return listed


def _are_ids(ids: Any) -> bool:
    """Return whether a value is a list of token ids."""
    listed = isinstance(ids, Sequence) and not isinstance(ids, str | bytes) and len(ids) > 0
    return listed and all(type(token) is int and 0 <= token <= _LARGEST for token in ids)
