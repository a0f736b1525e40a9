"""Collection of examples in the flat columns of ``Examples``, with a check of the shape of each."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rlhf_lightning.types import Example

_NAN = float("nan")


class Columns:
    """Flat columns under construction: ``add`` every example, then take the ``finished`` ones."""

    def __init__(self) -> None:
        self.tokens, self.mask = array("i"), bytearray()
        self.starts = array("q")  #: where each segment (prompt or response) begins, group after group
        self.segments, self.responses = array("i"), array("i")  #: of each group
        self.counts = array("i")  #: scored tokens of each response
        self.names: list[str] = []
        self.margins, self.labels = array("d"), array("f")
        self.numbers: dict[str, array[float]] = {}
        self.prompts = 1
        self.alone = False  #: the examples are prompts without responses
        self.columns: list[str | None] = []

    def add(self, example: Example) -> None:
        """Append one group.

        Raises:
            ValueError: its shape is impossible or differs from the first one's; see ``Examples.build``.
        """
        name = example.row or f"example {len(self.names)}"
        prompts = [example.prompt, *example.more_prompts]
        masks = self._checked(example, prompts, name)
        each = len(masks) // len(prompts)
        for number, prompt in enumerate(prompts):
            self._segment(prompt, bytes(len(prompt)), None)
            for slot in range(number * each, (number + 1) * each):
                labels = None if example.step_labels is None else example.step_labels[slot]
                self._segment(example.responses[slot], masks[slot], labels)
                self.counts.append(sum(masks[slot]))
        self.segments.append(len(prompts) + len(masks))
        self.responses.append(len(masks))
        for key, values in example.numbers.items():
            self.numbers.setdefault(key, array("f")).extend(values)
        self.names.append(example.row)
        self.columns.append(example.columns)
        self.margins.append(_NAN if example.margin is None else example.margin)

    def _segment(self, ids: list[int], mask: bytes, labels: list[float] | None) -> None:
        self.starts.append(len(self.tokens))
        self.tokens.extend(ids)
        self.mask.extend(mask)
        self.labels.extend([_NAN] * len(ids) if labels is None else labels)

    def _checked(self, example: Example, prompts: list[list[int]], name: str) -> list[bytes]:
        """The scored mask of each response as bytes of 0 and 1."""
        if not self.names:
            self.prompts, self.alone = len(prompts), example.responses == [[]]
            self.numbers = {key: array("f") for key in example.numbers}
        if len(prompts) != self.prompts:
            raise ValueError(f"{name}: {len(prompts)} prompts where earlier examples have {self.prompts}")
        responses = example.responses
        if len(responses) % len(prompts):
            raise ValueError(f"{name}: {len(responses)} responses to {len(prompts)} prompts")
        if not any(responses) and not (self.alone and responses == [[]]):
            raise ValueError(f"{name}: no response has a token")
        if self.alone and any(responses):
            raise ValueError(f"{name}: a response where earlier examples are prompts without any")
        if example.loss_mask is None:
            masks = [b"\1" * len(response) for response in responses]
        else:
            masks = [bytes(map(bool, mask)) for mask in example.loss_mask]
        if [len(mask) for mask in masks] != [len(response) for response in responses]:
            raise ValueError(f"{name}: the scored masks and the responses have different lengths")
        if any(response and not any(mask) for response, mask in zip(responses, masks, strict=True)):
            raise ValueError(f"{name}: a response without a scored token")
        each = len(responses) // len(prompts)
        if any(not prompts[i // each] for i, response in enumerate(responses) if response or self.alone):
            raise ValueError(f"{name}: the prompt has no token, so nothing predicts the first response token")
        self._check_numbers(example, name)
        return masks

    def _check_numbers(self, example: Example, name: str) -> None:
        if set(example.numbers) != set(self.numbers):
            raise ValueError(
                f"{name}: it has {sorted(example.numbers)} where earlier examples have {sorted(self.numbers)}"
            )
        for key, values in example.numbers.items():
            if len(values) != len(example.responses):
                raise ValueError(f"{name}: {len(values)} numbers {key!r} for {len(example.responses)} responses")
        labels = example.step_labels
        if labels is not None and [len(row) for row in labels] != [len(ids) for ids in example.responses]:
            raise ValueError(f"{name}: the step labels and the responses have different lengths")

    def finished(self) -> dict[str, Any]:
        """Every field of ``Examples``; groups with fewer responses than the longest one get empty slots at the end."""
        segments, responses = np.asarray(self.segments, dtype=np.int64), np.asarray(self.responses, dtype=np.int64)
        slots = int(responses.max()) if len(responses) else 1
        cuts = np.append(np.asarray(self.starts, dtype=np.int64), len(self.tokens))
        first = np.cumsum(segments) - segments  # of each group's segments
        column = np.minimum(np.arange(self.prompts + slots + 1), segments[:, None])
        labels = np.asarray(self.labels, dtype=np.float32)
        return {
            "tokens": np.asarray(self.tokens, dtype=np.int32),
            "loss_mask": np.frombuffer(bytes(self.mask), dtype=np.bool_),
            "bounds": cuts[first[:, None] + column],
            "slot_tokens": _by_slot(np.asarray(self.counts, dtype=np.int32), responses, slots, 0),
            "names": pa.array(self.names, pa.large_string()),
            "margin": _margin(np.asarray(self.margins, dtype=np.float64), self.names),
            "number": np.arange(len(self.names), dtype=np.int64),
            "prompts": self.prompts,
            "numbers": {
                key: _by_slot(np.asarray(values, dtype=np.float32), responses, slots, _NAN)
                for key, values in self.numbers.items()
            },
            "step_labels": None if np.isnan(labels).all() else labels,
            "columns": _texts(self.columns),
        }


def _by_slot(values: NDArray[Any], responses: NDArray[np.int64], slots: int, empty: float) -> NDArray[Any]:
    """One number a response, group after group, as (groups, slots)."""
    table = np.full((len(responses), slots), empty, dtype=values.dtype)
    table[np.arange(slots) < responses[:, None]] = values
    return table


def _texts(columns: list[str | None]) -> pa.LargeStringArray | None:
    """Columns as JSON objects; None when no example has any."""
    if all(text is None for text in columns):
        return None
    return pa.array([text or "{}" for text in columns], pa.large_string())


def _margin(margins: NDArray[np.float64], names: list[str]) -> NDArray[np.float32] | None:
    """The margin column; None when no example has one."""
    absent = np.isnan(margins)
    if absent.all():
        return None
    if absent.any():
        raise ValueError(f"{names[int(absent.argmax())]}: no margin, while other examples have one")
    return margins.astype(np.float32)
