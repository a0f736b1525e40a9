"""Pairs as questions for a judge: which of these two responses is better, asked in both orders."""

from __future__ import annotations

from dataclasses import replace

from rlhf_lightning.data.rows.messages import CALLS, Turns
from rlhf_lightning.data.rows.problems import ProblemKind, RowError
from rlhf_lightning.data.rows.records import Record, say
from rlhf_lightning.data.spec import DataSpec


def compared(record: Record, spec: DataSpec) -> Record:
    """A pair as two prompts that show both responses, each with the right and the wrong letter as responses.

    Args:
        record: a pair, the chosen response first.
        spec: has ``comparison``, the question, and ``verdicts``, the two letters.

    Returns:
        A record of two parts: the chosen response shown first, and shown second. The first response of a part is the
        letter of the chosen response.
    """
    parts = (record.prompt, *record.responses)
    if record.tools or any(
        turn.get(name) for part in parts if not isinstance(part, str) for turn in part for name in CALLS
    ):
        raise RowError(ProblemKind.TYPE, "the row has tools or tool calls, which the question to a judge does not show")
    record = replace(record, cut_off=())  # the letters are the responses, and they are whole
    shown, chosen, rejected = (_shown(part) for part in parts)
    first, second = spec.verdicts
    made = []
    for pair, letters in (((chosen, rejected), (first, second)), ((rejected, chosen), (second, first))):
        text = spec.comparison.format(prompt=shown, first=pair[0], second=pair[1])
        if record.conversation:
            responses = tuple([say("assistant", letter)] for letter in letters)
            made.append(replace(record, prompt=[say("user", text)], responses=responses, margin=None))
        else:
            made.append(replace(record, prompt=text, responses=letters, margin=None))
    return replace(record, kind="comparison", parts=tuple(made), margin=None, numbers={})


def _shown(part: str | Turns) -> str:
    """A conversation as text for a judge: the content of a single turn, or several turns with their speakers."""
    if isinstance(part, str):
        return part
    if len(part) == 1:
        return str(part[0]["content"])
    return "\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in part)
