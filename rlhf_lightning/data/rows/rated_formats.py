"""Layouts of rows other than demonstrations and pairs: lists with scores, steps with labels, paraphrases.

Each converter takes the row's fields and the spec and returns a :class:`Record`; ``formats.FORMATS`` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from rlhf_lightning.data.rows.fields import Fields
from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.data.rows.problems import ProblemKind, RowError
from rlhf_lightning.data.rows.records import Record, context_of, say, uniform
from rlhf_lightning.data.spec import DataSpec


def is_list(fields: Fields, *names: str) -> bool:
    """Return whether all of the columns hold a list."""
    values = [fields.get(name) for name in names]
    return all(isinstance(value, Sequence) and not isinstance(value, str) for value in values)


# Ranked lists


def fits_ranked(fields: Fields) -> bool:
    """Several responses with a score or a rank each, in columns of their own or inside the responses."""
    if not is_list(fields, "responses"):
        return False
    if is_list(fields, "scores") or is_list(fields, "ranks"):
        return True
    listed = fields.get("responses")
    return bool(listed) and all(isinstance(item, Mapping) and fields.inside(item).has("score") for item in listed)


def ranked(fields: Fields, spec: DataSpec) -> Record:
    """A list of responses in the order of their scores, the best one first; equal scores keep their order."""
    listed = fields.need("responses")
    if not is_list(fields, "responses") or not listed:
        raise fields.wrong("responses", "a list of responses", listed)
    responses = [_response(fields, item, at) for at, item in enumerate(listed)]
    scores = _scores(fields, listed)
    if len(scores) != len(responses):
        column = fields.column("scores" if fields.has("scores") else "ranks")
        raise RowError(
            ProblemKind.TYPE, f"{len(responses)} in {fields.column('responses')!r}, but {len(scores)} in {column!r}"
        )
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    record = uniform(context_of(fields), tuple(responses[at] for at in order), "ranked", "ranked")
    return replace(record, numbers={"score": [scores[at] for at in order]})


def _response(fields: Fields, item: Any, at: int) -> str | Turns:
    """One of several responses: text, messages, a message, or an object that holds one of these and its score."""
    if isinstance(item, Mapping) and "role" not in item and "from" not in item:
        return fields.inside(item).either("response")
    column = f"{fields.column('responses')}[{at}]"
    return fields.inside({column: item}, {"response": column}).either("response")


def _scores(fields: Fields, listed: Sequence[Any]) -> list[float]:
    if fields.has("scores"):
        return fields.numbers("scores")
    if fields.has("ranks"):
        return [-rank for rank in fields.numbers("ranks")]
    if all(isinstance(item, Mapping) for item in listed):
        return [fields.inside(item).number("score") for item in listed]
    return fields.numbers("scores")  # absent: raises with the column's name


# Safety


def fits_safety(fields: Fields) -> bool:
    """PKU-SafeRLHF: two responses, each labelled safe or not, and which one is safer."""
    return fields.has("prompt", "response_0", "response_1", "safer_response_id")


def safety(fields: Fields, spec: DataSpec) -> Record:
    """Two responses, the safer one first; :func:`better_first` makes a preference pair of them."""
    safer = _choice(fields, "safer_response_id")
    names = [f"response_{safer}", f"response_{1 - safer}"]
    first, second = (fields.either(name) for name in names)
    record = uniform(fields.either("prompt"), (first, second), "safety", "safety")
    return replace(record, numbers={"safe": [float(fields.flag(f"is_{name}_safe")) for name in names]})


def better_first(record: Record, fields: Fields) -> Record:
    """The pair of a safety row as preference data: the better response first where the row names it, else the safer."""
    if not fields.has("better_response_id"):
        return replace(record, kind="preference", numbers={})
    swapped = _choice(fields, "better_response_id") != _choice(fields, "safer_response_id")
    responses = record.responses[::-1] if swapped else record.responses
    return replace(record, kind="preference", responses=responses, numbers={})


def of_pair(fields: Fields) -> dict[str, list[float]]:
    """Optional numbers of a pair's two responses: win probabilities, and which one the policy or the reference drew.

    ``win_chosen`` and ``win_rejected`` lie in [0, 1]; ``policy_sample`` and ``reference_sample`` name a response of the
    pair, ``chosen`` or ``rejected``. Without a column, or with null in it, there is no such number.

    Raises:
        RowError: one win probability without the other, or another value in a column.
    """
    numbers: dict[str, list[float]] = {}
    if fields.has("win_chosen") or fields.has("win_rejected"):
        numbers["win_probability"] = [_probability(fields, name) for name in ("win_chosen", "win_rejected")]
    for name in ("policy_sample", "reference_sample"):
        if fields.has(name):
            drawn = fields.get(name)
            if drawn not in ("chosen", "rejected"):
                raise fields.wrong(name, "'chosen' or 'rejected'", drawn)
            numbers[name] = [float(drawn == slot) for slot in ("chosen", "rejected")]
    return numbers


def _probability(fields: Fields, name: str) -> float:
    value = fields.number(name)
    if not 0 <= value <= 1:
        raise fields.wrong(name, "a probability, from 0 to 1", value)
    return value


def _choice(fields: Fields, name: str) -> int:
    number = fields.number(name)
    if number not in (0, 1):
        raise fields.wrong(name, "0 or 1", fields.get(name))
    return int(number)


# Solutions in steps


def fits_steps(fields: Fields) -> bool:
    """TRL's layout: a prompt, the steps of a solution, a label for each step."""
    return fields.has("prompt") and is_list(fields, "steps", "labels")


def steps(fields: Fields, spec: DataSpec) -> Record:
    """A solution in steps; a label is true or false, or a number between 0 and 1."""
    listed = fields.need("steps")
    if not is_list(fields, "steps") or not all(isinstance(step, str) for step in listed):
        raise fields.wrong("steps", "a list of texts", listed)
    return _stepwise(fields.either("prompt"), listed, fields.numbers("labels", flags=True), "steps", spec)


def fits_math_shepherd(fields: Fields) -> bool:
    """Math-Shepherd: a text with a tag behind each step, and the same text with + or - instead of the tags."""
    return isinstance(fields.get("input"), str) and isinstance(fields.get("label"), str) and not fields.has("output")


def math_shepherd(fields: Fields, spec: DataSpec) -> Record:
    """Question and steps out of one text: the steps begin at "Step 1:", and each ends with ``data.spec.step_tag``."""
    text, labelled, tag = fields.text("input"), fields.text("label"), spec.step_tag
    pieces = text.split(tag)
    signs, position = [], 0
    for piece in pieces[:-1]:
        position += len(piece)
        signs.append(labelled[position : position + 1])
        position += 1
    if not signs or set(signs) - {"+", "-"}:
        raise RowError(
            ProblemKind.TYPE,
            f"{fields.column('label')!r} must be {fields.column('input')!r} with + or - instead of each "
            f"{tag!r} (data.spec.step_tag); it has {signs[:8]}",
        )
    question, marker, first = pieces[0].rpartition("Step 1:")
    listed = [marker + first, *pieces[1:-1]]
    labels = [float(sign == "+") for sign in signs]
    return _stepwise(question.strip(), [step.strip() for step in listed], labels, "math_shepherd", spec)


def _stepwise(prompt: str | Turns, listed: Sequence[str], labels: Sequence[float], name: str, spec: DataSpec) -> Record:
    if len(labels) != len(listed) or not listed:
        raise RowError(ProblemKind.TYPE, f"{len(listed)} steps, but {len(labels)} labels")
    if any(not 0 <= label <= 1 for label in labels):
        raise RowError(ProblemKind.TYPE, f"a step's label must lie between 0 and 1, not {[*labels]}")
    texts = [step + spec.step_separator for step in listed]
    record = uniform(prompt, ("".join(texts),), name, "steps")
    return replace(record, steps=tuple(zip(texts, labels, strict=True)))


# Paraphrases


def fits_coin(fields: Fields) -> bool:
    """CoIN's tables."""
    return fields.has("original_instruction", "paraphrased_instruction", "targets")


def coin(fields: Fields, spec: DataSpec) -> Record:
    """One row of CoIN's tables; the pipeline joins every second row to the one before it, as its hard negative."""
    target = fields.text("targets")
    return _paraphrases(
        [(fields.text(name), target) for name in ("original_instruction", "paraphrased_instruction")], "coin"
    )


def fits_paraphrase(fields: Fields) -> bool:
    """An instruction in two wordings with one response."""
    return fields.has("instruction", "paraphrase", "output")


def paraphrase(fields: Fields, spec: DataSpec) -> Record:
    """An instruction in two wordings, and a hard negative in up to two."""
    output = fields.text("output")
    listed: list[tuple[str, str] | None] = [(fields.text(name), output) for name in ("instruction", "paraphrase")]
    listed += [
        (fields.text(name), fields.text("negative_output")) if fields.has(name) else None
        for name in ("negative_instruction", "negative_paraphrase")
    ]
    return _paraphrases(listed, "paraphrase")


def _paraphrases(listed: Sequence[tuple[str, str] | None], name: str) -> Record:
    parts = [pair and Record(pair[0], (pair[1],), name) for pair in listed]
    parts += [None] * (4 - len(parts))
    first = cast("Record", parts[0])
    return replace(first, kind="paraphrase", parts=tuple(parts))


# Two contexts of one response


def judged(record: Record, judgment: str | None, spec: DataSpec) -> Record:
    """The response after prompt and judgment, and after the prompt alone; without a judgment the first is absent."""
    text = None if not judgment else spec.judgment.format(judgment=judgment)
    behind = None if text is None else replace(record, prompt=_appended(record.prompt, text))
    return replace(record, kind="judged", parts=(behind, record))


def _appended(prompt: str | Turns, text: str) -> str | Turns:
    """The prompt with a text behind its last user turn."""
    if isinstance(prompt, str):
        return prompt + text
    if prompt[-1]["role"] != "user":
        return [*prompt, say("user", text.strip())]
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + text}]


def in_context(record: Record, context: str, spec: DataSpec) -> Record:
    """The response in a context (as the teacher sees it), and without it (as the student does)."""
    return replace(record, kind="context", parts=(_with_context(record, context, spec), record))


def instructed(record: Record, spec: DataSpec, desirable: Sequence[float]) -> Record:
    """Responses under the positive instruction, under the negative one, and under none.

    Args:
        record: prompt and responses.
        spec: the instructions, and their position.
        desirable: of each response, 1 if it obeys the positive instruction, 0 if the negative one.
    """
    contexts = (spec.positive_context, spec.negative_context)
    parts = (*(_with_context(record, context, spec) for context in contexts), record)
    numbers = {"desirable": [*desirable] * len(parts)}
    return replace(record, kind="instruction", parts=parts, margin=None, numbers=numbers)


def _with_context(record: Record, context: str, spec: DataSpec) -> Record:
    """A record with a context added to its prompt: in front of its text, as the system message, or behind it."""
    prompt = record.prompt
    if spec.context_position == "behind":
        prompt = _appended(prompt, context)
    elif isinstance(prompt, str):
        prompt = f"{context}\n\n{prompt}"
    elif prompt and prompt[0]["role"] in ("system", "developer"):
        prompt = [{**prompt[0], "content": f"{context}\n\n{prompt[0]['content']}"}, *prompt[1:]]
    else:
        prompt = [say("system", context), *prompt]
    return replace(record, prompt=prompt)
