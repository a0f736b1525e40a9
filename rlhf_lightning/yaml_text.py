"""YAML of others, looked at before it is read: a few lines with aliases can stand for more than memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Values that aliases may add to a file, and levels that values may be nested; configurations need far fewer.
MOST_REPEATED, MOST_LEVELS = 100_000, 100


class OversizedYamlError(yaml.YAMLError):
    """A file whose aliases or nesting make it larger than anything that is meant to be read."""


def read_yaml(file: Path) -> Any:
    """Read a YAML file, after :func:`check_text`.

    Raises:
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read; OversizedYamlError is one of the last.
    """
    text = file.read_text(encoding="utf-8")
    check_text(text)
    return yaml.load(text, Loader=_LOADER)


def check_folder(folder: Path) -> None:
    """:func:`check_text` for every ``.yaml`` file below a folder.

    Raises:
        OversizedYamlError: the message names the file.
    """
    for file in sorted(folder.rglob("*.yaml")):
        try:
            check_text(file.read_text(encoding="utf-8"))
        except OversizedYamlError as error:
            raise OversizedYamlError(f"{file}: {error}") from None
        except (OSError, UnicodeDecodeError):
            continue  # whoever reads it says so


def check_text(text: str) -> None:
    """Refuse text whose aliases stand for too much or for what they are part of, and text that is nested too deeply.

    The sizes are summed over the parser's events, so nothing is built. Text that is no YAML is left to its reader.

    Raises:
        OversizedYamlError: the message says what is too much.
    """
    sizes = _Sizes()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            sizes.add(event)
    except OversizedYamlError:
        raise
    except (yaml.YAMLError, ValueError):
        return


class _Sizes:
    """Number of values that each anchor stands for, and that aliases have added so far."""

    def __init__(self) -> None:
        self.by_anchor: dict[str, int] = {}
        self.unclosed: list[tuple[str | None, int]] = []  #: anchor of each collection, and its size up to here
        self.repeated = 0

    def add(self, event: yaml.Event) -> None:
        """Count one event of the parser."""
        if isinstance(event, yaml.CollectionStartEvent):
            self.unclosed.append((event.anchor, 1))
            if len(self.unclosed) > MOST_LEVELS:
                raise OversizedYamlError(f"it is nested more than {MOST_LEVELS} levels deep")
        elif isinstance(event, yaml.AliasEvent):
            self._grow(self._repeated(event.anchor))
        elif isinstance(event, yaml.ScalarEvent):
            self._close(event.anchor, 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close(*self.unclosed.pop())

    def _repeated(self, anchor: str | None) -> int:
        if any(name == anchor for name, _ in self.unclosed):
            raise OversizedYamlError(f"*{anchor} contains itself")
        self.repeated += self.by_anchor.get(str(anchor), 1)
        if self.repeated > MOST_REPEATED:
            raise OversizedYamlError(f"its aliases stand for more than {MOST_REPEATED:,} values")
        return self.by_anchor.get(str(anchor), 1)

    def _close(self, anchor: str | None, size: int) -> None:
        if anchor is not None:
            self.by_anchor[anchor] = size
        self._grow(size)

    def _grow(self, size: int) -> None:
        if self.unclosed:
            anchor, held = self.unclosed.pop()
            self.unclosed.append((anchor, held + size))
