"""Changes made by a quickstart run, read from its files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.quickstart.picture import read_curve
from rlhf_lightning.quickstart.rule import score


@dataclass(frozen=True)
class Response:
    """A sampled response to a held-out prompt."""

    prompt: str
    text: str
    kl: float | None  #: log-ratio to the reference, summed over the response, in nats

    @property
    def score(self) -> float:
        """Score by the quickstart's rule."""
        return score(self.text)


@dataclass(frozen=True)
class Summary:
    """Responses to the same held-out prompts before and after training, and metrics of the held-out pairs."""

    before: list[Response]
    after: list[Response]
    accuracy: float  #: share of held-out pairs whose chosen response has the larger implicit reward
    margin: float  #: mean difference of implicit rewards on them, nats

    @classmethod
    def read(cls, folder: Path) -> Summary:
        """Read a run's folder.

        Raises:
            FileNotFoundError: the run did not sample before and after training.
        """
        tables = sorted((folder / "samples").glob("step_*.jsonl"))
        if len(tables) < 2:
            raise FileNotFoundError(
                f"{folder}/samples has {len(tables)} tables; the summary needs one from before and one from after "
                "training (set callbacks.samples.before_training=true and use validation data)"
            )
        metrics = metrics_file(folder)
        accuracy, margin = (read_curve(metrics, f"val/reward/{name}")[1][-1] for name in ("accuracy", "margin"))
        return cls(_responses(tables[0]), _responses(tables[-1]), accuracy, margin)

    def rows(self) -> list[tuple[str, str, str]]:
        """Rows of a table: name, before and after."""
        kl = [response.kl for response in self.after if response.kl is not None]
        scores = [mean_and_error([response.score for response in side]) for side in (self.before, self.after)]
        words = [_mean([len(response.text.split()) for response in side]) for side in (self.before, self.after)]
        return [
            ("held-out accuracy", "0.500 *", f"{self.accuracy:.3f}"),
            ("held-out margin (nats)", "0.000 *", f"{self.margin:.3f}"),
            ("KL to the start (nats per response)", "0.000 *", mean_and_error(kl)),
            ("rule's score, new responses", scores[0], scores[1]),
            ("words per response", f"{words[0]:.1f}", f"{words[1]:.1f}"),
        ]

    def examples(self, count: int = 3) -> list[tuple[str, Response, Response]]:
        """Questions with their responses before and after training; text shared by all prompts is left out."""
        questions = without_common_ends([response.prompt for response in self.before])
        return list(zip(questions, self.before, self.after, strict=True))[:count]


def metrics_file(folder: Path) -> Path:
    """The newest ``metrics.csv`` of a run."""
    return max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)


def mean_and_error(values: Sequence[float]) -> str:
    """Format mean and standard error as ``1.23 ± 0.04``."""
    if len(values) < 2:
        return f"{_mean(values):.3f}"
    mean = _mean(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return f"{mean:.2f} ± {math.sqrt(variance / len(values)):.2f}"


def without_common_ends(texts: Sequence[str]) -> list[str]:
    """Remove the words that all texts begin and end with: the template around each question."""
    words = [text.split() for text in texts]
    shortest = min(map(len, words))
    start = next((i for i in range(shortest) if len({row[i] for row in words}) > 1), 0)
    end = next((i for i in range(shortest - start) if len({row[-1 - i] for row in words}) > 1), 0)
    return [" ".join(row[start : len(row) - end]) for row in words]


def _responses(table: Path) -> list[Response]:
    rows: list[dict[str, Any]] = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    return [Response(row["prompt"], row["response"].strip(), row["kl"]) for row in rows]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
