"""Mixtures: rows drawn from several sources, each with a share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Literal

import numpy as np

from rlhf_lightning.data.rows.fields import ABSENT, columns_read, looked_up
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Row, Source, for_kind, using, window
from rlhf_lightning.options import Seed


class Mixture:
    """Rows drawn from several sources, each with a share.

    Every row's source is drawn with probability weight / sum of weights from one seeded generator; within a source,
    rows keep their order. ``stop=shortest`` ends when the drawn source has no row left, so no row is repeated and the
    shares hold. ``stop=longest`` restarts a source that is used up and ends when each has been read once, so small
    sources are repeated. ``stop=all`` ends when each has been read, without a repetition: the shares are those of the
    sources' sizes, and the weights decide which rows come early.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float] | None = None,
        *,
        columns: Mapping[str, Mapping[str, str]] | None = None,
        seed: Seed = 0,
        stop: Literal["shortest", "longest", "all"] = "shortest",
        limit: int | None = None,
    ) -> None:
        """Check the shares; no source is read yet.

        Args:
            sources: sources by a name of your choice.
            weights: shares by the same names, any positive scale; None: equal shares.
            columns: column maps (our name -> the data's, as in ``data.spec.columns``) by the same names, for sources
                whose columns differ.
            seed: of the draws.
            stop: ``shortest``, ``longest`` or ``all``.
            limit: total number of rows to draw; None: until ``stop``.

        Raises:
            DataError: names do not agree, a weight is not positive, or ``stop`` is unknown.
        """
        self.sources = dict(sources.items())
        self.weights = dict.fromkeys(self.sources, 1.0) if weights is None else dict(weights.items())
        self.columns = {
            name: {ours: column for ours, column in mapping.items() if column is not None}
            for name, mapping in (columns or {}).items()
        }
        if not self.sources or set(self.weights) != set(self.sources) or set(self.columns) - set(self.sources):
            raise DataError(
                "data.source.weights and data.source.columns must use the names of data.source.sources: "
                f"{sorted(self.sources)}; "
                f"weights has {sorted(self.weights)}, columns {sorted(self.columns)}"
            )
        if bad := {name: weight for name, weight in self.weights.items() if not weight > 0}:
            raise DataError(f"data.source.weights must be positive (remove a source to leave it out): {bad}")
        if stop not in ("shortest", "longest", "all"):
            raise DataError(f"data.source.stop={stop!r} is not one of shortest, longest, all")
        self.seed, self.stop = seed, stop
        self.limit = window(0, limit)[1]

    @property
    def name(self) -> str:
        """Shares and names of the sources; with ``stop=all`` the names alone."""
        if self.stop == "all":
            return " + ".join(self.sources)
        total = sum(self.weights.values())
        return " + ".join(f"{self.weights[name] / total:.0%} {name}" for name in self.sources)

    def for_kind(self, kind: str) -> Mixture:
        """Return the same mixture of the sources' rows of a kind; see the function of this name."""
        sources = {name: for_kind(source, kind) for name, source in self.sources.items()}
        return self._of(sources)

    def using(self, columns: Collection[str] | None) -> Mixture:
        """Return the same mixture with unused columns of its sources undecoded; those that it maps are kept."""
        if columns is None:
            return self
        needed = {name: columns_read(columns, self.columns.get(name, {})) for name in self.sources}
        return self._of({name: using(source, needed[name]) for name, source in self.sources.items()})

    def _of(self, sources: Mapping[str, Source]) -> Mixture:
        return Mixture(sources, self.weights, columns=self.columns, seed=self.seed, stop=self.stop, limit=self.limit)

    def rows(self) -> Iterator[Row]:
        """The drawn rows, each with the provenance that it has in its source."""
        return islice(self._draw(), self.limit)

    def _draw(self) -> Iterator[Row]:
        names = list(self.sources)
        share = np.array([self.weights[name] for name in names], dtype=np.float64)
        generator = np.random.default_rng(self.seed)
        running = {name: self._renamed(name) for name in names}
        finished, started = set[str](), set[str]()
        while True:
            for drawn in generator.choice(len(names), size=1024, p=share / share.sum()):
                name = names[drawn]
                row = next(running[name], None)
                if row is None and name not in started:
                    raise DataError(
                        f"{self.sources[name].name} holds no rows; remove {name} from data.source.sources and weights"
                    )
                if row is None:
                    finished.add(name)
                    if self.stop == "shortest" or len(finished) == len(names):
                        return
                    if self.stop == "all":  # later draws of it are skipped
                        continue
                    running[name] = self._renamed(name)
                    row = next(running[name])
                started.add(name)
                yield row

    def _renamed(self, name: str) -> Iterator[Row]:
        """The rows of a source under our names of its columns; a dot reaches into a nested object."""
        columns = self.columns.get(name, {})
        for row in self.sources[name].rows():
            values = {ours: looked_up(row.values, column) for ours, column in columns.items()}
            kept = {column: value for column, value in row.values.items() if column not in columns.values()}
            renamed = {ours: value for ours, value in values.items() if value is not ABSENT}
            unmapped = {} if row.error else {ours: columns[ours] for ours in columns.keys() - renamed.keys()}
            yield replace(row, values={**kept, **renamed}, part=name, unmapped=unmapped)

    def fingerprint(self) -> str | None:
        """Digest of the parts' digests and the shares; None when a part has none."""
        parts = {name: source.fingerprint() for name, source in self.sources.items()}
        if None in parts.values():
            return None
        state = [parts, self.weights, self.columns, self.seed, self.stop, self.limit]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()
