"""Pairs of two models' responses to the same prompts, where those of one model count as better."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Row, Source

log = logging.getLogger(__name__)

#: Columns of a response's row: the tokens that were drawn, as rollouts have them, or text, as ``rlhf generate`` has it.
_TOKENS, _TEXT = ("prompt_ids", "ids"), ("prompt", "response")


class ModelPairs:
    """Pairs of the i-th response of one model to a prompt over the i-th of another.

    Both sources have one row for each response: ``rollouts/*.jsonl`` of a run, whose tokens are used as they were
    drawn, or the output of ``rlhf generate``. Rows without a partner in the other source, and pairs of equal responses,
    are left out and counted in the log.

    Source: "Inverse-RLignment: Large Language Model Alignment from Demonstrations through Inverse Reinforcement
    Learning", arXiv:2405.15624, whose reward model learns from samples of the tuned model over those of the initial
    one.

    Args:
        chosen: responses of the better model.
        rejected: responses of the other one.
    """

    def __init__(self, chosen: Source, rejected: Source) -> None:
        self.chosen, self.rejected = chosen, rejected

    @property
    def name(self) -> str:
        """Names of both sources."""
        return f"{self.chosen.name} over {self.rejected.name}"

    def rows(self) -> Iterator[Row]:
        """One row for each pair, in the order of the better model's rows.

        Raises:
            DataError: a row is not a response, one source has text where the other has tokens, or no pair is left.
        """
        partners: dict[Hashable, list[Mapping[str, Any]]] = defaultdict(list)
        for row in self.rejected.rows():
            partners[_prompt(row)].append(row.values)
        seen: Counter[Hashable] = Counter()
        alone, equal, made = 0, 0, 0
        for row in self.chosen.rows():
            key = _prompt(row)
            others = partners.get(key, ())[seen[key] :]
            seen[key] += 1
            if not others:
                alone += 1
            elif (values := _pair(row.values, others[0])) is None:
                equal += 1
            else:
                made += 1
                yield Row(row.file, row.number, values)
        counts = f"{alone} responses without a partner, {equal} pairs of equal responses"
        if not made:
            raise DataError(
                f"{self.name}: no pair ({counts}): both sources need responses to the same prompts, both as text or "
                "both as tokens"
            )
        if alone or equal:
            log.info("%s: left out %s", self.name, counts)

    def fingerprint(self) -> str | None:
        """Digest of both sources' digests; None when one has none."""
        parts = [source.fingerprint() for source in (self.chosen, self.rejected)]
        return None if None in parts else hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _prompt(row: Row) -> Hashable:
    """Return a key of the prompt of a response.

    Raises:
        DataError: the row cannot be read, or is not a response.
    """
    if row.error is not None:
        raise DataError(f"{row.id}: {row.error}")
    for columns in (_TOKENS, _TEXT):
        if all(name in row.values for name in columns):
            return columns[0], json.dumps(row.values[columns[0]])
    raise DataError(
        f"{row.id}: a row needs the columns {' and '.join(_TEXT)}, as rlhf generate writes them, or "
        f"{' and '.join(_TOKENS)}, as rollouts/*.jsonl has them"
    )


def _pair(chosen: Mapping[str, Any], rejected: Mapping[str, Any]) -> dict[str, Any] | None:
    """A preference row of two responses to a prompt; None where they are equal."""
    if all(name in chosen for name in _TOKENS):
        tokens = [list(chosen["ids"]), list(rejected["ids"])]
        ids = {"kind": "preference", "prompt_ids": chosen["prompt_ids"], "response_ids": tokens}
        texts = {name: chosen[name] for name in ("prompt",) if name in chosen}
        return None if tokens[0] == tokens[1] else {**texts, **ids}
    pair = {"prompt": chosen["prompt"], "chosen": chosen["response"], "rejected": rejected["response"]}
    finish = [row.get("finish") for row in (chosen, rejected)]
    ends = {"finish": finish} if "length" in finish else {}
    return None if pair["chosen"] == pair["rejected"] else {**pair, **ends}
