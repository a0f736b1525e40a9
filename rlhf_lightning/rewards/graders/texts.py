"""Graders that compare a text with a reference: equality, containment, similarity."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rlhf_lightning.rewards.graders.base import Grade, Options, failed
from rlhf_lightning.rewards.graders.similarity import METRICS
from rlhf_lightning.rewards.graders.templates import Context, FieldError, Template

#: What ``input`` is to ``reference``.
OPERATIONS: Mapping[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}
#: Metrics of OpenAI's graders that are not here, and why.
_ABSENT = {
    "meteor": "it needs WordNet's synonyms, which no small library brings along",
    "cosine": "it needs an embedding model; use a python or a score_model grader",
}


class TextGrader:
    """A number for two texts, each made from a template.

    Args:
        spec: ``name``, ``input`` and ``reference``, and the field that says how they are compared.
        where: the option that the spec stands under.
        field: name of that field.
        measures: what it may say.

    Raises:
        ValueError: a field is missing, unknown or wrong.
    """

    parts: Sequence[str] = ()

    def __init__(self, spec: Any, where: str, field: str, measures: Mapping[str, Callable[[str, str], float]]) -> None:
        options = Options(spec, where, ("input", "reference", field))
        self.name, self.pass_threshold = options.name, options.pass_threshold
        self.measure = measures[options.text(field, among=tuple(measures))]
        self._input = Template(options.text("input"), f"{where}.input")
        self._reference = Template(options.text("reference"), f"{where}.reference")

    def __call__(self, contexts: Sequence[Context]) -> list[Grade]:
        """See :class:`~rlhf_lightning.rewards.graders.base.Grader`."""
        return [self._grade(context) for context in contexts]

    def _grade(self, context: Context) -> Grade:
        try:
            return Grade(float(self.measure(self._input.render(context), self._reference.render(context))))
        except FieldError as error:
            return failed(error, context)

    def check(self, columns: Collection[str]) -> None:
        """See :class:`~rlhf_lightning.rewards.graders.base.Grader`."""
        self._input.check(columns)
        self._reference.check(columns)

    def close(self) -> None:
        """Nothing to let go of."""


class StringCheck(TextGrader):
    """1 or 0: ``operation`` is ``eq``, ``ne``, ``like`` (the reference is in the input) or ``ilike`` (in any case)."""

    def __init__(self, spec: Any, where: str) -> None:
        super().__init__(spec, where, "operation", OPERATIONS)


class TextSimilarity(TextGrader):
    """In [0, 1]: ``evaluation_metric`` is one of :data:`~rlhf_lightning.rewards.graders.similarity.METRICS`."""

    def __init__(self, spec: Any, where: str) -> None:
        metric = spec.get("evaluation_metric") if isinstance(spec, Mapping) else None
        if metric in _ABSENT:
            raise ValueError(f"{where}.evaluation_metric={metric!r} is not available: {_ABSENT[metric]}")
        if metric == "fuzzy_match":
            import rapidfuzz  # noqa: F401 - here and not in the middle of a run, where it is missing
        super().__init__(spec, where, "evaluation_metric", METRICS)
