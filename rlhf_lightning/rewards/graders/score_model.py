"""A grader that asks a language model for a number."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rlhf_lightning.rewards.asking import Ask
from rlhf_lightning.rewards.graders.base import Grade, Options, failed
from rlhf_lightning.rewards.graders.templates import Context, FieldError, Template
from rlhf_lightning.rewards.verdicts import rating

#: What the model is asked to end with, since its answer is text.
FORMAT = (
    'End your answer with one JSON object and nothing behind it: {{"score": x}}, where x is a number from {} to {}.'
)
_SAMPLING = ("temperature", "seed", "max_completions_tokens")


class ScoreModel:
    """A number in ``range`` that a language model states; what cannot be read or lies outside is a failure.

    Args:
        spec: ``name``; ``input``, messages with ``role`` and ``content``, which may have templates; ``range``, [0, 1]
            unless it is given; ``sampling_params`` with ``temperature`` (0), ``seed`` (0) and
            ``max_completions_tokens`` (512). ``model`` is a label here: the reward's ``judge`` says who answers.
        where: the option that the spec stands under.
        ask: gives whom to ask when the first question comes.

    Raises:
        ValueError: a field is missing, unknown or wrong.
    """

    parts: Sequence[str] = ()

    def __init__(self, spec: Any, where: str, ask: Callable[[], Ask]) -> None:
        options = Options(spec, where, ("input", "model", "range", "sampling_params"))
        self.name, self.pass_threshold, self._ask = options.name, options.pass_threshold, ask
        self.low, self.high = _range(options.raw("range", (0.0, 1.0)), where)
        self._messages = [_message(message, f"{where}.input[{i}]") for i, message in enumerate(_list(options, "input"))]
        self._form = FORMAT.format(f"{self.low:g}", f"{self.high:g}")
        self._sampling = _sampling(options.raw("sampling_params") or {}, f"{where}.sampling_params")

    def __call__(self, contexts: Sequence[Context]) -> list[Grade]:
        """See :class:`~rlhf_lightning.rewards.graders.base.Grader`."""
        grades: list[Grade | None] = []
        questions: list[list[dict[str, str]]] = []
        for context in contexts:
            try:
                questions.append(self._question(context))
                grades.append(None)
            except FieldError as error:
                grades.append(failed(error, context))
        # Also with no question: where the policy answers, every process has to take part.
        answers = iter(self._ask().ask_each(questions, **self._sampling))
        return [self._grade(next(answers)) if grade is None else grade for grade in grades]

    def _question(self, context: Context) -> list[dict[str, str]]:
        messages = [{"role": role, "content": content.render(context)} for role, content in self._messages]
        messages[-1]["content"] += f"\n\n{self._form}"
        return messages

    def _grade(self, answer: str | None) -> Grade:
        if answer is None:
            return Grade(0.0, "error", "the judge gave no answer")
        score = rating(answer, self.low, self.high)
        if score is None:
            return Grade(0.0, "parse", f"no number from {self.low:g} to {self.high:g} in {answer[-200:]!r}")
        return Grade(score)

    def check(self, columns: Collection[str]) -> None:
        """See :class:`~rlhf_lightning.rewards.graders.base.Grader`."""
        for _, content in self._messages:
            content.check(columns)

    def close(self) -> None:
        """The judge belongs to the reward."""


def _list(options: Options, name: str) -> Sequence[Any]:
    values = options.raw(name)
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{options.where}.{name} must be a list of messages with role and content")
    return values


def _message(message: Any, where: str) -> tuple[str, Template]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise ValueError(f"{where} must be a message with role and content")
    content = message["content"]
    if isinstance(content, Mapping):  # OpenAI's {"type": "input_text", "text": ...}
        content = content.get("text")
    if not isinstance(content, str):
        raise ValueError(f"{where}.content must be a text, or a mapping with a text")
    return str(message["role"]), Template(content, f"{where}.content")


def _range(value: Any, where: str) -> tuple[float, float]:
    numbers = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not numbers or not all(isinstance(end, (int, float)) for end in value) or not value[0] < value[1]:
        raise ValueError(f"{where}.range={value!r} must be [lowest, highest]")
    return float(value[0]), float(value[1])


def _sampling(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, Mapping) or (unknown := sorted(set(given) - set(_SAMPLING))):
        what = f".{unknown[0]} is not used here" if isinstance(given, Mapping) else " must be a mapping"
        raise ValueError(f"{where}{what}; it has {', '.join(_SAMPLING)}, other settings are the judge's own")
    return {
        "temperature": float(given.get("temperature", 0.0)),
        "seed": int(given.get("seed", 0)),
        "max_tokens": int(given.get("max_completions_tokens", 512)),
    }
