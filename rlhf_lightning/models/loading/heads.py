"""The head of a reward model, on its way from a file to a scorer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

#: Where transformers keeps the head of its decoders.
HEAD = "score"
#: Field of an exported configuration: {"mean": ..., "std": ...}.
NORMALIZATION = "score_normalization"
#: Field of an exported configuration whose scores are read elsewhere than at the last token.
POOL = "score_pool"

#: Where a response's score is read; see :class:`~rlhf_lightning.models.scorers.scorer.Scorer`.
Pool = Literal["eos", "before_eos"]


@dataclass(frozen=True)
class SavedHead:
    """A head that came with weights: the loader leaves it at ``model.saved_head``, a scorer takes it from there."""

    weight: Tensor  #: [outputs, d]
    bias: Tensor | None = None  #: [outputs]
    mean: float = 0.0  #: normalisation that was fitted when it was trained
    std: float = 1.0
    origin: str = ""  #: folder or hub id that it came from
    pool: Pool = "eos"  #: where its scores were read when it was trained

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, config: Mapping[str, Any], origin: str) -> SavedHead:
        """A head with the normalisation and the pool that a configuration has, if it has any."""
        measured = config.get(NORMALIZATION) or {}
        pool: Pool = config.get(POOL) or "eos"
        return cls(weight, bias, float(measured.get("mean", 0.0)), float(measured.get("std", 1.0)), origin, pool)


def saved_head(weights: Mapping[str, Tensor], name: str, folder: str) -> SavedHead:
    """The head of an adapter's file, with the normalisation of the configuration beside it.

    Args:
        weights: of the file.
        name: of the head in it.
        folder: of the file, or its hub id.

    Raises:
        ValueError: the file has no head.
    """
    if f"{name}.weight" not in weights:
        raise ValueError(
            f"{folder} says that it is an adapter of a reward model, and its file has no head ({name}.weight): one "
            "drawn at random would be another reward model"
        )
    return SavedHead.of(weights[f"{name}.weight"], weights.get(f"{name}.bias"), _config(folder), folder)


def _config(folder: str) -> dict[str, Any]:
    """The configuration beside an adapter; empty where there is none, as other software leaves it out."""
    from transformers.utils.hub import cached_file

    file = cached_file(folder, "config.json", _raise_exceptions_for_missing_entries=False)
    if file is None:
        return {}
    with open(file, encoding="utf-8") as text:
        config: dict[str, Any] = json.load(text)
    return config
