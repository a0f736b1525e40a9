"""A text at a position of the query: the object of a prompt search, and the use of its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.prompting.base import Transform, existing_file, query_of, with_query

Position = Literal["before_Q", "Q_begin", "Q_end", "A_begin"]
POSITIONS = ("before_Q", "Q_begin", "Q_end", "A_begin")


@dataclass
class Instruction(Transform):
    """An instruction at one of OPRO's four positions.

    Source: "Large Language Models as Optimizers", arXiv:2309.03409, section 5.1.
    Differences: the query and its response
    are turns of a chat, not ``Q:`` and ``A:``; an instruction before the query is the system message.

    Args:
        text: the instruction.
        file: file with the instruction, such as ``best.txt`` of ``rlhf optimize_prompt``; give either this or ``text``.
        position: ``before_Q``: the system message, before an existing one; ``Q_begin`` and ``Q_end``: a separate line
            before or after the query; ``A_begin``: the response begins with it.

    Raises:
        ValueError: neither or both are given, the file does not exist, or the position is unknown.
    """

    files: ClassVar[tuple[str, ...]] = ("file",)

    text: str | None = None
    file: str | None = None
    position: Position = "Q_end"

    def __post_init__(self) -> None:
        """Read the text."""
        if (self.text is None) == (self.file is None):
            raise ValueError("set either prompting.text (the instruction) or prompting.file (a file with it)")
        if self.position not in POSITIONS:
            raise ValueError(f"prompting.position={self.position!r} must be one of {', '.join(POSITIONS)}")
        text = self.text if self.file is None else existing_file(self.file, "prompting.file").read_text("utf-8")
        self._text = str(text).strip()

    def __call__(self, turns: Turns) -> Turns:
        """Add the instruction to the turns; an empty one changes nothing."""
        if not self._text:
            return turns
        if self.position == "A_begin":
            return [*turns, {"role": "assistant", "content": self._text}]
        if self.position == "before_Q":
            first = turns[0] if turns and turns[0]["role"] == "system" else None
            text = self._text if first is None else f"{self._text}\n\n{first['content']}"
            return [{"role": "system", "content": text}, *(turns if first is None else turns[1:])]
        query = turns[query_of(turns)]["content"]
        parts = (self._text, query) if self.position == "Q_begin" else (query, self._text)
        return with_query(turns, "\n".join(parts))
