"""Several graders and a formula over their scores; and the one way from a spec to a grader."""

from __future__ import annotations

import difflib
import keyword
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.rewards.asking import Ask
from rlhf_lightning.rewards.graders.base import Grade, Grader, Options
from rlhf_lightning.rewards.graders.formula import Formula
from rlhf_lightning.rewards.graders.python import PythonGrader
from rlhf_lightning.rewards.graders.sandbox import Limits
from rlhf_lightning.rewards.graders.score_model import ScoreModel
from rlhf_lightning.rewards.graders.templates import Context
from rlhf_lightning.rewards.graders.texts import StringCheck, TextSimilarity

#: How deep graders may be nested.
MAX_DEPTH = 4


@dataclass(frozen=True)
class Means:
    """Inputs of graders besides their spec."""

    ask: Callable[[], Ask]  #: gives whom a score_model asks
    limits: Limits  #: of a python grader's call


class Multi:
    """A formula over named graders, each of which is logged by its name.

    A grader that the formula does not mention is logged only: a second opinion that a policy cannot learn to please. A
    grader that failed counts as 0 in the formula.

    Args:
        spec: ``name``; ``graders``, specs by name; ``calculate_output``, the formula.
        where: the option that the spec stands under.
        means: for the graders.
        depth: how many others it stands in.

    Raises:
        ValueError: a field is missing, unknown or wrong; a name that a formula cannot have.
    """

    def __init__(self, spec: Any, where: str, means: Means, depth: int = 0) -> None:
        options = Options(spec, where, ("graders", "calculate_output"))
        self.name, self.pass_threshold = options.name, options.pass_threshold
        specs = options.raw("graders")
        if not isinstance(specs, Mapping) or not specs:
            raise ValueError(f"{where}.graders must be a mapping of graders by name")
        if depth >= MAX_DEPTH:
            raise ValueError(f"{where}: graders are nested more than {MAX_DEPTH} deep")
        if wrong := [name for name in specs if not str(name).isidentifier() or keyword.iskeyword(str(name))]:
            raise ValueError(f"{where}.graders: {wrong[0]!r} is no name that a formula can have")
        self.formula = Formula(options.text("calculate_output"), list(specs), f"{where}.calculate_output")
        self.graders = {
            str(name): make_grader(inner, f"{where}.graders.{name}", means, depth + 1) for name, inner in specs.items()
        }
        inner = [(name, part) for name, grader in self.graders.items() for part in ("", *grader.parts)]
        self.parts: Sequence[str] = [f"{name}/{part}" if part else name for name, part in inner]

    def __call__(self, contexts: Sequence[Context]) -> list[Grade]:
        """See :class:`~rlhf_lightning.rewards.graders.base.Grader`."""
        columns = [grader(contexts) for grader in self.graders.values()]
        return [self._grade(dict(zip(self.graders, row, strict=True))) for row in zip(*columns, strict=True)]

    def _grade(self, grades: dict[str, Grade]) -> Grade:
        parts = dict(grades)
        for name, grade in grades.items():
            parts |= {f"{name}/{inner}": part for inner, part in grade.parts.items()}
        try:
            return Grade(self.formula({name: grade.score for name, grade in grades.items()}), parts=parts)
        except ArithmeticError as error:
            return Grade(0.0, "error", str(error), parts)

    def check(self, columns: Collection[str]) -> None:
        """See :class:`~rlhf_lightning.rewards.graders.base.Grader`."""
        for grader in self.graders.values():
            grader.check(columns)

    def close(self) -> None:
        """Let go of the graders' processes."""
        for grader in self.graders.values():
            grader.close()


#: Every type of grader by its name in a spec.
GRADERS: Mapping[str, Callable[[Any, str, Means, int], Grader]] = {
    "string_check": lambda spec, where, means, depth: StringCheck(spec, where),
    "text_similarity": lambda spec, where, means, depth: TextSimilarity(spec, where),
    "score_model": lambda spec, where, means, depth: ScoreModel(spec, where, means.ask),
    "python": lambda spec, where, means, depth: PythonGrader(spec, where, means.limits),
    "multi": Multi,
}


def make_grader(spec: Any, where: str, means: Means, depth: int = 0) -> Grader:
    """A grader from its spec, a mapping in the form of OpenAI's graders.

    Args:
        spec: with a ``type``, one of :data:`GRADERS`.
        where: the option that it stands under, for messages.
        means: what graders need.
        depth: how many others it stands in.

    Raises:
        ValueError: anything is wrong with the spec; the message names the field.
    """
    kind = spec.get("type") if isinstance(spec, Mapping) else None
    if not isinstance(kind, str) or kind not in GRADERS:
        close = difflib.get_close_matches(str(kind), GRADERS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"{where}.type={kind!r} is no type of grader.{hint} There are {', '.join(GRADERS)}")
    return GRADERS[kind](spec, where, means, depth)
