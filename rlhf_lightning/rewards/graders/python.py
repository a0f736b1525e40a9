"""A grader that is a Python function, run in a process of its own with limits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.rewards.graders.base import Grade, Options
from rlhf_lightning.rewards.graders.sandbox import Limits, Sandbox, check_source
from rlhf_lightning.rewards.graders.templates import Context


class PythonGrader:
    """Result of a function ``grade(sample, item) -> float``.

    ``sample`` is a dictionary with ``output_text``, ``output_json`` and ``finish_reason``, ``item`` one with the row's
    columns. The function sees the standard library only; see :mod:`~rlhf_lightning.rewards.graders.worker` for what it
    cannot do. What it prints is thrown away.

    Args:
        spec: ``name``, and ``source`` (Python text) or ``path`` of a file with it; OpenAI's ``image_tag`` is ignored.
        where: the option that the spec stands under.
        limits: of a call.

    Raises:
        ValueError: no source, both, or one without the function.
    """

    parts: Sequence[str] = ()

    def __init__(self, spec: Any, where: str, limits: Limits | None = None) -> None:
        options = Options(spec, where, ("source", "path", "image_tag"))
        self.name, self.pass_threshold = options.name, options.pass_threshold
        if (options.raw("source") is None) == (options.raw("path") is None):
            raise ValueError(f"{where} needs either source, the text of a Python file, or path, the file")
        source = options.text("source", "") or _read(options.text("path", ""), where)
        check_source(source, f"{where}.source")
        self._sandbox = Sandbox(source, limits)

    def __call__(self, contexts: Sequence[Context]) -> list[Grade]:
        """See :class:`~rlhf_lightning.rewards.graders.base.Grader`."""
        return [self._grade(context) for context in contexts]

    def _grade(self, context: Context) -> Grade:
        outcome = self._sandbox.run(context.sample, context.item)
        if outcome.score is not None:
            return Grade(outcome.score)
        row = f" ({context.row})" if context.row else ""
        return Grade(0.0, "timeout" if outcome.timeout else "error", f"{outcome.error}{row}")

    def check(self, columns: Collection[str]) -> None:
        """A program says nowhere which columns it reads."""

    def close(self) -> None:
        """End the process."""
        self._sandbox.close()


def _read(path: str, where: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{where}.path={path!r}: there is no such file")
    return file.read_text(encoding="utf-8")
