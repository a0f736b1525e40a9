"""Pairs as questions for a judge: which of these two responses is better, asked in both orders."""

from __future__ import annotations

from dataclasses import replace

from rlhf_lightning.data.rows.messages import CALLS, Turns
from rlhf_lightning.data.rows.problems import Kind, RowError
from rlhf_lightning.data.rows.records import Record, say
from rlhf_lightning.data.spec import DataSpec


def compared(record: Record, spec: DataSpec) -> Record:
    """A pair as two prompts that show both responses, each answered by the right and by the wrong letter.

    Args:
        record: a pair, the chosen response first.
        spec: ``comparison``, the question, and ``verdicts``, the two letters.

    Returns:
        A record of two parts: the chosen response shown first, and shown second. The first response of a part is the
        letter of the place in which the chosen response stands.
    """
    parts = (record.prompt, *record.responses)
    if record.tools or any(
        turn.get(name) for part in parts if not isinstance(part, str) for turn in part for name in CALLS
    ):
        raise RowError(Kind.TYPE, "the row has tools or calls of them, which the question to a judge does not show")
    record = replace(record, cut_off=())  # the letters are responses of their own
    shown, chosen, rejected = (_shown(part) for part in parts)
    first, second = spec.verdicts
    made = []
    for pair, letters in (((chosen, rejected), (first, second)), ((rejected, chosen), (second, first))):
        text = spec.comparison.format(prompt=shown, first=pair[0], second=pair[1])
        if record.conversation:
            answers = tuple([say("assistant", letter)] for letter in letters)
            made.append(replace(record, prompt=[say("user", text)], responses=answers, margin=None))
        else:
            made.append(replace(record, prompt=text, responses=letters, margin=None))
    return replace(record, kind="comparison", parts=tuple(made), margin=None, numbers={})


def _shown(part: str | Turns) -> str:
    """A conversation as a judge reads it: the text alone where it has one turn, with the speakers where it has more."""
    if isinstance(part, str):
        return part
    if len(part) == 1:
        return str(part[0]["content"])
    return "\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in part)
