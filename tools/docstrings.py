"""Docstrings of the reference pages: roles and formulas of reStructuredText as Markdown writes them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_MATH = re.compile(r"^([ ]*)\.\. math::[ ]*(.*(?:\n(?!\s*$)\1[ ]+.*)*)", re.MULTILINE)


def as_markdown(text: str) -> str:
    """A docstring with ``:math:``, other roles and ``.. math::`` in Markdown."""
    text = re.sub(r":math:`([^`]+)`", r"\\(\1\\)", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return _MATH.sub(lambda match: f"{match[1]}\n{match[1]}\\[{' '.join(match[2].split())}\\]\n", text)


class Docstrings(griffe.Extension):
    """Griffe extension: rewrites every docstring as it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class and function."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
