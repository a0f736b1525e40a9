"""Mining of texts written by a policy that a detector misses."""

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
    """A response with its prompt."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Labelled:
    """A text with its label; its row is a labelled response, as ``method=binary_discrimination`` learns from."""

    text: Text
    label: bool  #: true for positives

    @property
    def row(self) -> dict[str, object]:
        """Row of a data file."""
        return {"prompt": self.text.prompt, "response": self.text.response, "label": self.label}


@dataclass(frozen=True)
class Mined:
    """False negatives and as many true negatives, in two parts that share no prompt."""

    train: list[Labelled]
    held_out: list[Labelled]

    @property
    def missed(self) -> int:
        """Number of false negatives in both parts."""
        return sum(row.label for row in (*self.train, *self.held_out))


def mine_texts(
    texts: Iterable[Text],
    detector: Callable[[Sequence[Text]], list[float]],
    oracle: Callable[[Text], bool],
    *,
    threshold: float = 0.5,
    held_out: float = 0.5,
) -> Mined:
    """Collect positives that the detector misses, as labelled by an oracle.

    As many negatives of the same origin are added, if there are enough. Without them, a classifier could learn that
    everything written by the policy is positive.

    Args:
        texts: texts written by the policy; duplicates count once.
        detector: gives probabilities.
        oracle: returns the true label of a text: a rule, or people.
        threshold: probability at or above which a text is flagged.
        held_out: share of the prompts whose texts are kept for evaluation.
    """
    distinct = sorted(set(texts))
    probabilities = detector(distinct)
    labels = [oracle(text) for text in distinct]
    judged = list(zip(distinct, probabilities, labels, strict=True))
    parts: tuple[list[Labelled], list[Labelled]] = ([], [])
    for part in (False, True):
        candidates = [(text, p, label) for text, p, label in judged if _held_out(text, held_out) is part]
        missed = [Labelled(text, True) for text, p, label in candidates if label and p < threshold]
        # Nearest to the boundary first: a detector that flags more texts raises its first false alarms there.
        others = sorted(((-p, text) for text, p, label in candidates if not label))
        parts[part].extend([*missed, *(Labelled(text, False) for _, text in others[: len(missed)])])
    return Mined(*parts)


def read_rollouts(folder: str | Path, tokenizer: PreTrainedTokenizerBase, *, last: int | None = None) -> list[Text]:
    """Read prompts and finished responses of a run's rollouts, ``runs/train/<date>/rollouts``.

    Args:
        folder: folder with ``00000.jsonl`` and so on.
        tokenizer: tokenizer of the policy; texts are decoded without chat markup and special tokens.
        last: number of the newest files to read, of a policy that has learned its task; None: all files.

    Raises:
        FileNotFoundError: the folder has no rollouts.
    """
    files = sorted(Path(folder).glob("[0-9]*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder} has no rollouts (00000.jsonl, ...): give the folder 'rollouts' of a run")
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
    """Decide by the prompt alone, so that no prompt is in both parts, and alike in every round."""
    digest = hashlib.sha256(text.prompt.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
