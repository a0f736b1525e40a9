"""Rows of every kind, drawn by script from the base's own responses or from the grammar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Row
from rlhf_lightning.options import Seed
from rlhf_lightning.world import grammar, kinds
from rlhf_lightning.world.base import TinyWorld
from rlhf_lightning.world.grammar import Split

#: Of a pair; see :class:`TinySource`.
SIDES = ("chosen", "rejected")
#: Kinds whose rows may be one side of another kind's.
_SIDED: Mapping[str, str] = {"supervised": "preference"}


class TinySource:
    """A data set of the tiny world, of the kind that a method needs.

    Pairs, lists, labelled and rated rows have responses of the base itself, so they are on-policy at the first step;
    demonstrations, steps, paraphrases and contexts come from the grammar. The same arguments give the same rows. No
    prompt of ``split="validation"`` shares its subject with one of ``split="train"``.

    Prompts alone (``kind="prompt"``) come with the columns ``topic``, ``subject`` and ``answer``, the claim of a right
    answer as :func:`~rlhf_lightning.world.claims.claim` spells it. There are 114 for training and 38 for validation;
    ``size`` rows are as many passes over them, each in another order. With ``prompts_of`` they are the prompts of
    another kind's rows, by whose names those responses are found.
    """

    def __init__(
        self,
        split: Split = "train",
        size: int = 3072,
        *,
        seed: Seed = 0,
        flips: float = 0.0,
        longest: int = 6,
        topics: Sequence[str] | None = None,
        kind: str = "preference",
        base: TinyWorld | None = None,
        demonstrations: float = 0.0,
        prompts_of: str | None = None,
        error: float = 0.0,
        side: str | None = None,
    ) -> None:
        """Check the options; nothing is drawn yet.

        Args:
            split: ``train`` or ``validation``.
            size: rows.
            seed: seed of the draws; that of the base is ``base.seed``.
            flips: probability that a label is flipped: the pair is swapped, the label of a response or a step is
                negated, or the first two scores of a list are exchanged.
            longest: maximum number of responses of a ranked list; each list has 2 to this many.
            topics: topics of the prompts: some of ``fact``, ``description``, ``advice``; None: all.
            kind: kind of the rows; the data module sets the one that the method needs.
            base: model that the responses come from; None: the default base of ``model=tiny``.
            demonstrations: share of the pairs whose chosen response is a demonstration and whose rejected one is the
                base's own sample, marked so (``policy_sample``), as SPIN and APO's game have them.
            prompts_of: of ``kind="prompt"``: a kind with responses, such as ``supervised``, whose rows ask; None:
                passes over all prompts.
            error: standard deviation of the labeller's errors in pairs, lists and labels, in points.
            side: of ``kind="supervised"``: ``chosen`` or ``rejected``, that side of the pairs in the place of
                demonstrations; None: the grammar's.

        Raises:
            DataError: an option is out of range, or there is no such kind.
        """
        if split not in ("train", "validation"):
            raise DataError(f"data.source.split={split!r} is not one of train, validation")
        if size < 1 or not 0 <= flips <= 1 or longest < 2 or not 0 <= demonstrations <= 1:
            raise DataError(
                f"data.source.size={size} must be at least 1, data.source.flips={flips} and "
                f"data.source.demonstrations={demonstrations} lie in [0, 1] and data.source.longest={longest} be at "
                "least 2"
            )
        if kind not in kinds.ROWS:
            raise DataError(f"the tiny world has no data of kind {kind!r}; it has {', '.join(kinds.ROWS)}")
        if error < 0:
            raise DataError(f"data.source.error={error} must be at least 0: it is a standard deviation, in points")
        if prompts_of is not None and not (prompts_of in kinds.ROWS and KINDS[prompts_of].has_responses):
            names = ", ".join(name for name in kinds.ROWS if KINDS[name].has_responses)
            raise DataError(f"data.source.prompts_of={prompts_of!r} must be a kind with responses: {names}")
        if side not in (None, *SIDES):
            raise DataError(f"data.source.side={side!r} is not one of {', '.join(SIDES)}, null")
        self.topics = _sorted_topics(topics, kind)
        self.split, self.size, self.seed, self.flips, self.longest = split, size, seed, flips, longest
        self.kind, self.base, self.demonstrations = kind, base or TinyWorld(), demonstrations
        self.prompts_of, self.error, self.side = prompts_of, error, side

    def for_kind(self, kind: str) -> TinySource:
        """Return the same source with rows of another kind.

        Raises:
            DataError: a side of the pairs was chosen, which is not a row of this kind.
        """
        if self.side is not None and kind not in _SIDED:
            raise DataError(
                f"data.source.side={self.side} takes one side of pairs for a method of {KINDS['supervised'].brought}, "
                f"but this method learns from {KINDS[kind].brought}: set data.source.side=null"
            )
        options: dict[str, Any] = {"seed": self.seed, "flips": self.flips, "longest": self.longest, "base": self.base}
        options |= {"topics": self.topics, "demonstrations": self.demonstrations, "prompts_of": self.prompts_of}
        options |= {"error": self.error, "side": self.side}
        return TinySource(self.split, self.size, kind=kind, **options)

    @property
    def name(self) -> str:
        """Name of this source in reports."""
        return f"tiny/{self._drawn}{f'/{self.side}' if self._one_side else ''}/{self.split}"

    @property
    def _drawn(self) -> str:
        """The kind of the rows that are drawn."""
        if self._one_side:
            return _SIDED[self.kind]
        return self.kind if KINDS[self.kind].has_responses else self.prompts_of or self.kind

    @property
    def _one_side(self) -> bool:
        """True if the rows are one side of pairs."""
        return self.side is not None and self.kind in _SIDED

    def rows(self) -> Iterator[Row]:
        """The rows; trains and samples the base on the first use."""
        options = kinds.Options(
            self.size, self.seed, self.flips, self.longest, self.topics, self.demonstrations, self.error
        )
        # A repeated prompt is the same row, not a duplicate.
        numbers = {prompt.text: number for number, prompt in enumerate(grammar.prompts(self.split), start=1)}
        for number, values in enumerate(kinds.draw(self._drawn, self.base, self.split, options), start=1):
            if self._one_side:
                values = {"prompt": values["prompt"], "response": values[str(self.side)]}
            yield Row(self.name, number if KINDS[self._drawn].has_responses else numbers[values["prompt"]], values)

    def fingerprint(self) -> str:
        """Digest of everything that determines the rows."""
        state: Mapping[str, Any] = {
            "version": kinds.ROWS_VERSION,
            "base": self.base.digest(),
            "options": [self.split, self.kind, self.size, self.seed, self.flips, self.longest, self.topics],
            "demonstrations": self.demonstrations,
            "prompts_of": self.prompts_of,
            "error": self.error,
            **({"side": self.side} if self._one_side else {}),
        }
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sorted_topics(topics: Sequence[str] | None, kind: str) -> tuple[str, ...]:
    """Return the topics of a kind's prompts; all of them if none are named.

    Raises:
        DataError: there is no such topic, or the one that the kind needs is missing.
    """
    named = tuple(sorted(set(topics or kinds.TOPICS)))
    if unknown := set(named) - set(kinds.TOPICS):
        names = ", ".join(kinds.TOPICS)
        raise DataError(f"data.source.topics={list(named)} are not all among {names}: {sorted(unknown)}")
    if (needed := kinds.ONE_TOPIC.get(kind)) and needed not in named:
        raise DataError(f"{kind} rows are about {needed}, which data.source.topics={list(named)} leaves out")
    return named
