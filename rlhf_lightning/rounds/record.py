"""Rollouts on disk: files for people, from which a killed run also reads the responses that it had drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.files import write_atomically
from rlhf_lightning.sharded_state import holds_first, local
from rlhf_lightning.types import Draw, Sample, SampleGroup, ScoredGroup

#: Folder of the data sets that were made of rollouts, beside the rollouts' files.
GROUPS = "groups"


@dataclass(frozen=True)
class Drawn:
    """Groups of a rollout that an earlier, killed process drew."""

    groups: dict[int, ScoredGroup] = field(default_factory=dict)  #: by the position of their prompt
    counts: dict[str, float] | None = None  #: of the reward, by name; None: not recorded


@dataclass(frozen=True)
class Rollouts:
    """A folder of rollouts, ``00000.jsonl`` and so on, one row a sample.

    A row has the rollout's number and key, where its prompt is from, prompt and response as text and as ids, the
    engine's log-probs, how the response ended, the optimiser steps that its weights had taken, its score and every
    term, which draw it is from, its probability of beating each sample of its prompt where they were compared
    (``wins``), and, where it was trained on, its mean advantage; ``counts`` is what the reward counted over the
    rollout. A file appears under its name only when it is whole.

    Attributes:
        folder: of the files.
        decode: ids as text.
        draws: of a prompt, in the order of its samples.
    """

    folder: Path
    decode: Callable[[Sequence[int]], str]
    draws: tuple[Draw, ...] = (Draw(),)

    def path(self, number: int) -> Path:
        """The file of a rollout."""
        return self.folder / f"{number:05d}.jsonl"

    def write(
        self,
        number: int,
        key: str,
        drawn: Iterable[ScoredGroup],
        columns: Mapping[int, Sequence[Mapping[str, Any]]],
        counts: Mapping[str, float],
    ) -> None:
        """Write a rollout.

        Args:
            number: of the rollout.
            key: digest of everything that its samples are a function of, see :func:`key_of`.
            drawn: every group that was drawn.
            columns: what became of the first samples of the groups that are trained on, by position of the prompt.
            counts: of the reward, by name.
        """

        def write(temporary: Path) -> None:
            with temporary.open("w", encoding="utf-8") as file:
                for entry in drawn:
                    for row in self._rows(entry, columns.get(entry.position, ())):
                        row = {"rollout": number, **row, "counts": dict(counts), "key": key}
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")

        write_atomically(self.path(number), write)

    def write_groups(self, number: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the groups that were made of a rollout, as a data set of its own; nothing where there are none.

        Args:
            number: of the rollout; the file is ``groups/<number>.jsonl``.
            rows: see ``lessons.base.Lesson.rows``.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if text:
            path = self.folder / GROUPS / self.path(number).name
            write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))

    def set_aside(self, numbers: Iterable[int]) -> None:
        """Rename rollouts to ``<number>.empty.jsonl``: they can still be read, and a resumed run draws again."""
        for path in map(self.path, numbers):
            if path.exists():
                path.replace(path.with_suffix(".empty.jsonl"))

    def _rows(self, entry: ScoredGroup, columns: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        prompt = self.decode(entry.group.prompt)
        greedy = next((number for number, draw in enumerate(self.draws) if number and not draw.temperature), None)
        baseline = None if greedy is None else entry.score[entry.of_draw(greedy)][0]
        for at, sample in enumerate(entry.group.samples):
            learned = columns[at] if at < len(columns) else {}
            yield {
                "place": entry.position,
                "row": entry.group.row,
                "index": entry.group.index,
                "sample": at,
                "prompt": prompt,
                "response": self.decode(sample.ids),
                "score": entry.score[at],
                "terms": {name: values[at] for name, values in entry.terms.items()},
                "advantage": None,
                "trained": False,
                **learned,
                "finish": sample.finish,
                "tokens": len(sample.ids),
                "version": sample.version,
                "baseline": baseline,
                "draw": entry.draw[at],
                "source": self.draws[entry.draw[at]].source,
                "wins": entry.wins[at] if entry.wins else None,
                "steps": [None if x != x else x for x in entry.steps[at]] if entry.steps else None,
                "prompt_ids": entry.group.prompt,
                "ids": sample.ids,
                "log_probs": sample.log_probs,
            }

    def read(self, number: int, key: str, examples: Examples) -> Drawn:
        """Read the groups of a rollout; none where there is no file of this key.

        Args:
            number: of the rollout.
            key: see :func:`key_of`.
            examples: the data set, which has the columns of a row.
        """
        path = self.path(number)
        if not path.exists():
            return Drawn()
        by_position: dict[int, list[dict[str, Any]]] = {}
        counts: dict[str, float] | None = None
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row["key"] != key:
                    return Drawn()
                by_position.setdefault(row["place"], []).append(row)
                counts = row.get("counts")
        samples = sum(draw.n for draw in self.draws)  # earlier versions wrote no greedy response
        whole = {position: rows for position, rows in by_position.items() if len(rows) == samples}
        return Drawn({at: _group(at, rows, examples) for at, rows in whole.items()}, counts)


def _group(position: int, rows: list[dict[str, Any]], examples: Examples) -> ScoredGroup:
    first = rows[0]
    samples = [Sample(row["ids"], row["log_probs"], row["finish"], row["version"]) for row in rows]
    columns = examples.columns_of(first["index"])
    return ScoredGroup(
        position,
        SampleGroup(first["prompt_ids"], samples, columns, first["row"], first["index"]),
        [row["score"] for row in rows],
        {name: [row["terms"][name] for row in rows] for name in first["terms"]},
        [[torch.nan if x is None else x for x in row["steps"]] for row in rows] if first["steps"] is not None else [],
        [row.get("draw", 0) for row in rows],
        [row["wins"] for row in rows] if first.get("wins") is not None else [],
    )


def key_of(*parts: Any) -> str:
    """A digest of everything that a rollout is a function of."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


@torch.no_grad()
def checksum(weights: Iterator[tuple[str, Tensor]], total: Callable[[Tensor], Tensor]) -> str:
    """A digest of weights: of each the sum of its bits read as whole numbers.

    Sums of whole numbers do not depend on their order, so they are the same however the weights are sharded, and a
    change of any one number changes them. A part that several processes hold counts once.

    Args:
        weights: by name.
        total: sums a tensor over the processes where weights are sharded, called once.
    """
    sums, names, sharded = [], [], False
    for name, weight in weights:
        part = local(weight)
        kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[part.element_size()]
        sums.append(part.contiguous().view(kind).sum(dtype=torch.int64) * holds_first(weight))
        names.append(name)
        sharded |= hasattr(weight, "to_local")
    if not sums:
        return ""
    bits = torch.stack(sums)
    if sharded:
        bits = total(bits)
    return key_of(names, bits.tolist())
