"""Rollouts on disk: what people read, and where a run that was killed finds the responses it had drawn."""

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
from rlhf_lightning.types import Draw, Sample, SampleGroup, ScoredGroup

#: Folder of the data sets that were made of rollouts, beside the rollouts' files.
GROUPS = "groups"


@dataclass(frozen=True)
class Drawn:
    """What an earlier, killed process drew of a rollout."""

    groups: dict[int, ScoredGroup] = field(default_factory=dict)  #: by the place of their prompt
    counts: dict[str, float] | None = None  #: of the reward, by name; None: unknown


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
    decode: Callable[[list[int]], str]
    draws: tuple[Draw, ...] = (Draw(),)

    def path(self, number: int) -> Path:
        """The file of a rollout."""
        return self.folder / f"{number:05d}.jsonl"

    def write(
        self,
        number: int,
        key: str,
        drawn: Sequence[ScoredGroup],
        columns: Mapping[int, Sequence[Mapping[str, Any]]],
        counts: Mapping[str, float],
    ) -> None:
        """Write a rollout.

        Args:
            number: of the rollout.
            key: what its samples are a function of, see :func:`key_of`.
            drawn: every group that was drawn.
            columns: what became of the first samples of the groups that are trained on, by the place of the prompt.
            counts: of the reward, by name.
        """

        def write(temporary: Path) -> None:
            with temporary.open("w", encoding="utf-8") as file:
                for scored in drawn:
                    for row in self._rows(scored, columns.get(scored.place, ())):
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
        """Rename rollouts to ``<number>.empty.jsonl``: people still see them, and a run that is resumed draws again."""
        for path in map(self.path, numbers):
            if path.exists():
                path.replace(path.with_suffix(".empty.jsonl"))

    def _rows(self, scored: ScoredGroup, columns: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        prompt = self.decode(scored.group.prompt)
        greedy = next((number for number, draw in enumerate(self.draws) if number and not draw.temperature), None)
        baseline = None if greedy is None else scored.score[scored.of_draw(greedy)][0]
        for at, sample in enumerate(scored.group.samples):
            learned = columns[at] if at < len(columns) else {}
            yield {
                "place": scored.place,
                "row": scored.group.row,
                "index": scored.group.index,
                "sample": at,
                "prompt": prompt,
                "response": self.decode(sample.ids),
                "score": scored.score[at],
                "terms": {name: values[at] for name, values in scored.terms.items()},
                "advantage": None,
                "trained": False,
                **learned,
                "finish": sample.finish,
                "tokens": len(sample.ids),
                "version": sample.version,
                "baseline": baseline,
                "draw": scored.draw[at],
                "source": self.draws[scored.draw[at]].source,
                "wins": scored.wins[at] if scored.wins else None,
                "steps": [None if x != x else x for x in scored.steps[at]] if scored.steps else None,
                "prompt_ids": scored.group.prompt,
                "ids": sample.ids,
                "log_probs": sample.log_probs,
            }

    def read(self, number: int, key: str, examples: Examples) -> Drawn:
        """What was drawn of a rollout; nothing where there is no file of this key.

        Args:
            number: of the rollout.
            key: see :func:`key_of`.
            examples: the data set, which knows the columns of a row.
        """
        path = self.path(number)
        if not path.exists():
            return Drawn()
        found: dict[int, list[dict[str, Any]]] = {}
        counts: dict[str, float] | None = None
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row["key"] != key:
                    return Drawn()
                found.setdefault(row["place"], []).append(row)
                counts = row.get("counts")
        samples = sum(draw.n for draw in self.draws)  # earlier versions wrote no greedy response
        whole = {place: rows for place, rows in found.items() if len(rows) == samples}
        return Drawn({place: _group(place, rows, examples) for place, rows in whole.items()}, counts)


def _group(place: int, rows: list[dict[str, Any]], examples: Examples) -> ScoredGroup:
    first = rows[0]
    samples = [Sample(row["ids"], row["log_probs"], row["finish"], row["version"]) for row in rows]
    columns = examples.columns_of(first["index"])
    return ScoredGroup(
        place,
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
    change of any one number changes them.

    Args:
        weights: by name.
        total: sums a tensor over the processes where weights are sharded, called once.
    """
    sums, names, sharded = [], [], []
    for name, weight in weights:
        local = getattr(weight, "to_local", None)
        part = (weight if local is None else local()).detach()
        kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[part.element_size()]
        sums.append(part.contiguous().view(kind).sum(dtype=torch.int64))
        names.append(name)
        sharded.append(local is not None)
    if not sums:
        return ""
    mine = torch.stack(sums)
    if any(sharded):
        mine = total(mine)
    return key_of(names, mine.tolist())
