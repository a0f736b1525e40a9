"""Texts that a detector overlooks, out of what a policy wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.rewards.texts import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, order=True)
class Text:
    """A response and what it answers."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Labelled:
    """A text with its label; as a row it is a labelled response, ``method=binary_discrimination`` learns from it."""

    text: Text
    label: bool  #: whether it is what the detector looks for

    @property
    def row(self) -> dict[str, object]:
        """The row that a data file has."""
        return {"prompt": self.text.prompt, "response": self.text.response, "label": self.label}


@dataclass(frozen=True)
class Mined:
    """False negatives with as many true negatives, in two parts that share no prompt."""

    train: list[Labelled]
    held_out: list[Labelled]

    @property
    def missed(self) -> int:
        """False negatives in both parts."""
        return sum(row.label for row in (*self.train, *self.held_out))


def mine(
    texts: Iterable[Text],
    detector: Callable[[Sequence[Text]], list[float]],
    oracle: Callable[[Text], bool],
    *,
    threshold: float = 0.5,
    held_out: float = 0.5,
) -> Mined:
    """Texts that are what the detector looks for, and that it does not find, relabelled by an oracle.

    As many negatives stand beside them, of the same origin where there are enough: without them a classifier could
    learn that whatever the policy wrote is positive.

    Args:
        texts: what the policy wrote; each counts once.
        detector: gives probabilities.
        oracle: says what a text really is: a rule, or people.
        threshold: probability from which on a text counts as found.
        held_out: share of the prompts whose texts are kept for evaluation.
    """
    distinct = sorted(set(texts))
    probabilities = detector(distinct)
    labels = [oracle(text) for text in distinct]
    scored = list(zip(distinct, probabilities, labels, strict=True))
    parts: tuple[list[Labelled], list[Labelled]] = ([], [])
    for part in (False, True):
        mine_ = [(text, p, label) for text, p, label in scored if _held_out(text, held_out) is part]
        missed = [Labelled(text, True) for text, p, label in mine_ if label and p < threshold]
        # The nearest to the boundary first: where a detector that finds more will first raise false alarms.
        others = sorted(((-p, text) for text, p, label in mine_ if not label))
        parts[part].extend([*missed, *(Labelled(text, False) for _, text in others[: len(missed)])])
    return Mined(*parts)


def read_rollouts(folder: str | Path, tokenizer: PreTrainedTokenizerBase, *, last: int | None = None) -> list[Text]:
    """Prompts and finished responses of a run's rollouts, ``runs/train/<date>/rollouts``.

    Args:
        folder: with ``00000.jsonl`` and so on.
        tokenizer: of the policy; texts are made of the ids, without chat markup and special tokens.
        last: read that many of the newest only, when the policy had learned what to do; None: all.

    Raises:
        FileNotFoundError: no rollouts in the folder.
    """
    files = sorted(Path(folder).glob("[0-9]*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no rollouts (00000.jsonl, ...); name the folder 'rollouts' of a run")
    rows = [json.loads(line) for file in files[-last if last else None :] for line in file.read_text().splitlines()]
    texts = Texts(tokenizer)
    ended = [row for row in rows if row["finish"] == "stop"]
    return [Text(texts.content(row["prompt_ids"]).strip(), texts.text(row["ids"]).strip()) for row in ended]


def write_rows(path: str | Path, rows: Iterable[Labelled]) -> Path:
    """Write labelled texts as a JSONL file that ``data=json`` reads."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row.row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def _held_out(text: Text, share: float) -> bool:
    """By the prompt alone, so that no prompt is in both parts, and the same in every round."""
    digest = hashlib.sha256(text.prompt.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
