"""Overrides as people type them, in Hydra's grammar.

The grammar wants quotes inside the shell's around text with blanks, commas, accents, ``#``, ``~`` and the like. A plain
value that it cannot read is quoted here, so paths are written as they are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

_HOME = re.compile(r"~(/|$)")
_FUNCTION = re.compile(r"(?:choice|range|interval|glob|sort|shuffle|tag|extend_list|int|float|str|bool|json_str)\s*\(")


def readable(overrides: Iterable[str]) -> list[str]:
    """Overrides that Hydra reads, where that is possible; the others as they are, for its own error.

    ``~/`` at the beginning of a value is the home folder, as a shell has it in front of a word. Text that the grammar
    does not know is quoted: the whole of a value, and each item of a list or a sweep. What Hydra reads stays.

    Args:
        overrides: ``key=value``, with or without ``+``, ``++``.
    """
    return [_readable(override) for override in overrides]


def quoted(text: str | Path) -> str:
    """Text as the value of an override."""
    return QuotedString(str(text), Quote.double).with_quotes()


def quoting_hint(override: str) -> str:
    """Suggest a replacement of an override whose value Hydra cannot read."""
    key, equals, value = override.partition("=")
    if not equals:
        return ""
    return f"\n  If the value is text, quote it inside the shell's quotes: {shlex.quote(f'{key}={quoted(value)}')}"


def several_values(override: Override, fix: str = "") -> str:
    """Explain the error of an override with several values in a single job.

    Args:
        override: a sweep.
        fix: how to have a job for each, where the command can.
    """
    key, _, value = str(override.input_line).partition("=")
    text = quoted(value.replace('"', ""))
    return (
        f"{override.input_line} names several values: {fix}write a list as {key}=[a,b] and text with commas as "
        f"{shlex.quote(f'{key}={text}')}"
    )


def _readable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[~+]*[\w./@:$-]+", key, re.ASCII) or _FUNCTION.match(value.strip()):
        return override
    candidate = f"{key}={_value(value)}"
    return candidate if candidate != override and _is_read(candidate) else override


def _value(value: str) -> str:
    """A value with quotes where it needs them."""
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        return f"[{','.join(map(_value, _items(text[1:-1])))}]"
    braced = text.startswith("{") and text.endswith("}")
    if not _HOME.match(text) and (not text or braced or _is_read(f"key={text}")):
        return value
    parts = list(_items(text))
    if len(parts) > 1 and "" not in parts:
        return ",".join(map(_value, parts))
    return quoted(Path(text).expanduser() if _HOME.match(text) else text)


def _items(text: str) -> Iterator[str]:
    """Parts between the commas of a list or a sweep, outside of quotes and brackets."""
    depth, quote, item = 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not item.strip():
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and not quote and not depth:
            yield item.strip()
            item = ""
        else:
            item += character
    if item.strip():
        yield item.strip()


def _is_read(override: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([override])
    except (HydraException, OmegaConfBaseException):
        return False
    return True
