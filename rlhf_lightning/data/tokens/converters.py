"""Conversions of tokenised groups from the rows' kind to the method's: pairs, lists and labels into one another.

Groups that a conversion leaves out (ties, lists of one response) are counted in a note of the report. A conversion that
needs a decision (from which score on is a response desirable?) is refused with the option that makes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.rows.problems import DataError, DataReport
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.types import Example

Native = tuple[str, Example]  #: the kind that a row is by itself, and its group


class Converter:
    """Makes groups of one kind out of those of others, and counts them.

    Args:
        kind: what the method learns from.
        spec: how lists become pairs, from which score on a response is desirable, whether scored rows are gathered.
    """

    def __init__(self, kind: str, spec: DataSpec) -> None:
        self.kind, self.spec = kind, spec
        self.made: Counter[str] = Counter()  #: groups that were made out of a row of another kind, by that kind
        self.lists = 0  #: lists gathered out of rows with one scored response each
        self.gathered = 0  #: those rows
        self.tied = 0  #: pairs, or responses, whose scores do not say which is better
        self.same = 0  #: pairs of equal responses
        self.barren = 0  #: lists that gave nothing

    def __call__(self, natives: Iterable[Native]) -> Iterator[Example]:
        """Convert groups as they come; gathered lists come last."""
        held: dict[bytes, list[Example]] = {}
        for native, example in natives:
            if self._gathered(native, example):
                held.setdefault(_prompt(example), []).append(example)
            else:
                yield from self._converted(native, example)
        self.lists, self.gathered = len(held), sum(map(len, held.values()))
        for rows in held.values():
            if KINDS[self.kind].has_responses:
                yield from self._converted("ranked", _joined(rows))
            else:
                yield replace(rows[0], numbers={})

    def _gathered(self, native: str, example: Example) -> bool:
        """Return whether a row is one of several scored responses to a prompt that form a list."""
        if not (self.spec.gather and KINDS[native].gathered and "score" in example.numbers):
            return False
        conversion = _CONVERSIONS.get((native, self.kind))
        return len(example.responses) == 1 and (conversion is None or conversion.of_lists(self.spec))

    def _converted(self, native: str, example: Example) -> Iterator[Example]:
        if native == self.kind:
            yield from self.singled(example) if KINDS[native].same_response else (example,)
            return
        before = sum(self.made.values())
        for made in _CONVERSIONS[native, self.kind].make(self, example):
            self.made[native] += 1
            yield made
        self.barren += before == sum(self.made.values())

    # The conversions

    def unpair(self, pair: Example) -> Iterator[Example]:
        """A pair as two labelled responses."""
        for slot, label in enumerate((1.0, 0.0)):
            yield _only(pair, slot, desirable=[label])

    def rank(self, pair: Example) -> Iterator[Example]:
        """A pair as a list of two, in the order of its scores; pairs without scores have 1 and 0."""
        scores = pair.numbers["score"]
        order = [0, 1] if scores[0] >= scores[1] else [1, 0]
        self.tied += scores[0] == scores[1]
        yield replace(_chosen(pair, order), margin=None, numbers={"score": [scores[slot] for slot in order]})

    def pairs(self, ranked: Example) -> Iterator[Example]:
        """A list as pairs of different responses with different scores; the gap of the scores is the margin."""
        scores = ranked.numbers["score"]
        slots = range(len(scores))
        drawn: Iterable[tuple[int, int]] = {
            "best_worst": [(0, len(scores) - 1)] if len(scores) > 1 else [],
            "adjacent": pairwise(slots),
            "all": combinations(slots, 2),
        }[self.spec.pairs]
        for better, worse in drawn:
            if scores[better] == scores[worse]:
                self.tied += 1
            elif ranked.responses[better] == ranked.responses[worse]:
                self.same += 1
            else:
                gap = scores[better] - scores[worse]
                yield replace(_chosen(ranked, [better, worse]), margin=gap, numbers={})

    def label(self, ranked: Example) -> Iterator[Example]:
        """Each response of a list as a labelled response, by ``data.spec.threshold``."""
        scores, threshold = ranked.numbers["score"], self.spec.threshold
        if threshold is None:
            raise DataError(
                "this method learns from labelled responses, and the rows have scores: set data.spec.threshold to the "
                "score from which on a response is desirable, or to mean, which takes each prompt's own mean score"
            )
        mean = sum(scores) / len(scores)
        for slot, score in enumerate(scores):
            if threshold == "mean" and score == mean:
                self.tied += 1
            else:
                desirable = score > mean if isinstance(threshold, str) else score >= threshold
                yield _only(ranked, slot, desirable=[float(desirable)])

    def singled(self, group: Example) -> Iterator[Example]:
        """Each response of a group in all its contexts, where a row gave several responses in each."""
        contexts = 1 + len(group.more_prompts)
        if len(group.responses) == contexts:
            yield group
            return
        each = len(group.responses) // contexts
        for slot in range(each):
            numbers = {name: list(values[slot::each]) for name, values in group.numbers.items()}
            yield replace(_chosen(group, [*range(slot, contexts * each, each)]), numbers=numbers)

    def account(self, report: DataReport, groups: int) -> None:
        """Report the groups that were converted and those that were left out."""
        noun = KINDS[self.kind].noun
        if self.gathered:
            made = "lists, one a prompt" if KINDS[self.kind].has_responses else noun
            report.note(f"{self.gathered} scored responses with a row each are {self.lists} {made}")
        for native, count in self.made.items():
            option = _CONVERSIONS[native, self.kind].option
            value = f" (data.spec.{option}={getattr(self.spec, option)})" if option else ""
            report.note(f"{KINDS[native].noun} became {count} {KINDS[self.kind].named(count)}{value}")
        for count, what in (
            (self.tied, "ties of scores"),
            (self.same, "pairs of equal responses"),
            (self.barren, f"groups that gave no {noun}"),
        ):
            if count:
                report.note(f"{count} {what} {'kept' if self._keeps_ties else 'left out'}")
        report.groups = groups

    @property
    def _keeps_ties(self) -> bool:
        return any(made.keeps_ties for (_, kind), made in _CONVERSIONS.items() if kind == self.kind)


def _always(spec: DataSpec) -> bool:
    return True


@dataclass(frozen=True)
class Conversion:
    """A conversion of groups of one kind to groups of another."""

    make: Callable[[Converter, Example], Iterator[Example]]
    option: str = ""  #: of ``data.spec``, that decides the result
    keeps_ties: bool = False  #: responses with equal scores stay
    of_lists: Callable[[DataSpec], bool] = _always  #: whether it looks at all scored responses to a prompt together


#: By the kind of the rows and that of the method; what else serves a method is read as its kind by
#: ``data.rows.kind_readers``.
_CONVERSIONS: Mapping[tuple[str, str], Conversion] = {
    ("ranked", "preference"): Conversion(Converter.pairs, option="pairs"),
    ("ranked", "unpaired"): Conversion(
        Converter.label, option="threshold", of_lists=lambda spec: spec.threshold == "mean"
    ),
    ("preference", "ranked"): Conversion(Converter.rank, keeps_ties=True),
    ("preference", "unpaired"): Conversion(Converter.unpair),
}


def _prompt(example: Example) -> bytes:
    return repr(example.prompt).encode()


def _chosen(example: Example, slots: list[int]) -> Example:
    """Some responses of a group, in the order given."""
    mask = None if example.loss_mask is None else [example.loss_mask[slot] for slot in slots]
    return replace(example, responses=[example.responses[slot] for slot in slots], loss_mask=mask)


def _only(example: Example, slot: int, **numbers: list[float]) -> Example:
    return replace(_chosen(example, [slot]), margin=None, numbers=numbers)


def _joined(rows: list[Example]) -> Example:
    """The scored responses of one prompt as a list, the best one first; it is named after its first row."""
    ordered = sorted(rows, key=lambda row: -row.numbers["score"][0])
    masks = [row.loss_mask[0] if row.loss_mask else [True] * len(row.responses[0]) for row in ordered]
    return replace(
        rows[0],
        responses=[row.responses[0] for row in ordered],
        loss_mask=None if all(map(all, masks)) else masks,
        numbers={"score": [row.numbers["score"][0] for row in ordered]},
    )
