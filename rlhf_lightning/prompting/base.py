"""Common parts of prompt transforms."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.data.rows.problems import ProblemKind, RowError
from rlhf_lightning.models.loading.run_folders import exported
from rlhf_lightning.types import PromptForm


@dataclass
class Transform(ABC):
    """A transform whose prompts a chat template renders, and which is defined by its options.

    Options are the fields of the dataclass. Those named in :attr:`files` are paths, identified by their content.
    """

    plain: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = ()
    tokenizer: ClassVar[Any] = None

    @property
    def closing(self) -> str:
        """See :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`."""
        return ""

    @property
    def form(self) -> PromptForm:
        """See :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`."""
        return PromptForm()

    @abstractmethod
    def __call__(self, turns: Turns) -> Turns:
        """See :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`."""

    def begin(self, tokenizer: Any) -> None:
        """See :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`."""
        self.tokenizer = tokenizer  # type: ignore[misc]

    def prepare(self, conversations: Sequence[Turns]) -> None:  # noqa: B027  most prepare nothing
        """See :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`.

        Nothing is gained from many at once.
        """

    def content(self) -> Mapping[str, Any]:
        """See :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`."""
        options = {field.name: getattr(self, field.name) for field in fields(self) if not field.name.startswith("_")}
        for name in self.files:
            options[name] = None if options[name] is None else content_digest(options[name])
        return {"transform": type(self).__name__, **options}


def existing_file(path: str, option: str) -> Path:
    """Return the file named by an option.

    Raises:
        ValueError: it does not exist.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{option}={path}: there is no such file")
    return file


def texts_of(path: str, option: str, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Read the texts under some names in every row of a JSONL file.

    Raises:
        ValueError: the file does not exist or is empty, or a row lacks one of the texts.
    """
    rows = []
    for number, line in enumerate(existing_file(path, option).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{option}={path}:{number} is not JSON: {error}") from error
        values = [row.get(name) if isinstance(row, dict) else None for name in names]
        texts = [value for value in values if isinstance(value, str) and value.strip()]
        if len(texts) < len(names):
            fields = " and ".join(f'"{name}"' for name in names)
            raise ValueError(f"{option}={path}:{number} must have texts under {fields}")
        rows.append(tuple(texts))
    if not rows:
        raise ValueError(f"{option}={path} has no rows")
    return rows


def model_location(path: str, option: str) -> str:
    """Find a model's weights: a hub id, a folder of weights, or the export of a run's folder.

    Raises:
        ValueError: the folder does not exist, or the run has no export.
    """
    folder = Path(path).expanduser()
    if path.startswith(("/", ".", "~")) and not folder.exists():
        raise ValueError(f"{option}={path}: there is no such folder")
    if folder.is_dir():
        return str(exported(folder, option))
    return str(folder) if folder.exists() else path


def content_digest(path: str | Path) -> str:
    """Digest of a file's bytes, or of the names and bytes of a folder's files; any other path is returned unchanged."""
    root = Path(path).expanduser()
    if not root.exists():
        return str(path)
    digest = hashlib.blake2b(digest_size=16)
    for file in [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file()):
        digest.update(b"" if file == root else str(file.relative_to(root)).encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "blake2b").digest())
    return digest.hexdigest()


def query_of(turns: Turns) -> int:
    """Find the position of the last user turn.

    Raises:
        RowError: there is none.
    """
    positions = [at for at, turn in enumerate(turns) if turn["role"] == "user"]
    if not positions:
        raise RowError(ProblemKind.TYPE, "the prompt has no user turn that prompting=... could change")
    return positions[-1]


def with_query(turns: Turns, content: str) -> Turns:
    """Return the turns with another text in the last user turn; the input is not changed."""
    at = query_of(turns)
    return [*turns[:at], {**turns[at], "content": content}, *turns[at + 1 :]]
