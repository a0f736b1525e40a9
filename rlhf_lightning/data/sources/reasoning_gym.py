"""Tasks of reasoning-gym, which generates problems and verifies answers, as a source of prompts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Row

#: Part of the key of tokenised data; raise it when the same options start to give other rows.
_ROWS_VERSION = 1
#: Problems are drawn up to this many times as often as a split needs without repeated problems.
_PATIENCE = 4
_SPARE = 1000


class ReasoningGym:
    """Problems of one task of reasoning-gym, each once, with the columns that the task's verifier needs.

    Source: "Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable Rewards",
    arXiv:2505.24760, and its library.

    The columns of a row are ``prompt``, the model's prompt; ``question`` and ``answer``, as the task gives them;
    ``dataset``, the task's name; and ``entry``, the task's whole record of the problem, as JSON text.

    A hash of its question alone decides which split a problem belongs to. The library's seeds do not separate problems:
    its problem ``i`` of seed ``s`` is problem ``0`` of seed ``s + i``, so two seeds share nearly all of them.
    """

    def __init__(
        self,
        dataset: str,
        size: int = 1000,
        *,
        split: Literal["train", "validation"] = "train",
        held_out: float = 0.1,
        seed: int = 0,
        prompt: str = "{question}",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the options by generating one problem.

        Args:
            dataset: the task's name in the library, such as ``basic_arithmetic``.
            size: number of rows.
            split: ``train`` or ``validation``; no question is in both, whatever their seeds.
            held_out: share of all questions that belongs to validation; the same in both splits.
            seed: of the library's draws.
            prompt: the model's prompt; ``{question}`` is the task's text.
            config: options of the task, such as ``{min_digits: 1, max_digits: 2}``.

        Raises:
            DataError: reasoning-gym is not installed, it has no such task, the task refuses an option, an option of
                ours is out of range, or the task's verifier gives other scores once an entry was stored as JSON.
        """
        if split not in ("train", "validation"):
            raise DataError(f"data.source.split={split!r} is not one of train, validation")
        if size < 1 or not 0 < held_out < 1:
            raise DataError(f"data.source.size={size} must be at least 1 and data.source.held_out={held_out} in (0, 1)")
        if "{question}" not in prompt:
            raise DataError(f"data.source.prompt={prompt!r} must contain {{question}}")
        self.dataset, self.size, self.split, self.held_out, self.seed = dataset, size, split, held_out, seed
        self.prompt = prompt
        self.config = _plain(config or {})
        share = held_out if split == "validation" else 1 - held_out
        self._draws = _PATIENCE * math.ceil(size / share) + _SPARE
        self._task = self._made()
        self._check_json()

    def _made(self) -> Any:
        try:
            import reasoning_gym  # takes half a second to import, so it is imported only where it is needed
        except ImportError as error:
            raise DataError(
                "data=reasoning_gym needs reasoning-gym: pip install 'rlhf-lightning[reasoning]'"
            ) from error
        try:
            return reasoning_gym.create_dataset(self.dataset, size=self._draws, seed=self.seed, **self.config)
        except (AssertionError, TypeError, ValueError) as error:
            raise DataError(
                f"reasoning-gym refuses data.source.dataset={self.dataset!r} with data.source.config="
                f"{self.config}: {error}"
            ) from error

    def _check_json(self) -> None:
        """Refuse a task whose verifier compares tuples, which JSON turns into lists."""
        entry = self._task[0]
        gold_answer = entry["answer"]
        if gold_answer is None:
            return
        restored = json.loads(json.dumps(entry))
        if self._task.score_answer(gold_answer, restored) != self._task.score_answer(gold_answer, entry):
            raise DataError(
                f"data.source.dataset={self.dataset!r}: its verifier gives another score once an entry was stored as "
                "JSON, as columns of rows are; choose another task"
            )

    @property
    def name(self) -> str:
        """Name of this source in reports."""
        return f"reasoning_gym/{self.dataset}/{self.split}"

    def rows(self) -> Iterator[Row]:
        """The problems; a row's number is the problem's position in the library's order.

        Raises:
            DataError: the task has too few different problems.
        """
        seen: set[bytes] = set()
        for position in range(self._draws):
            entry = self._task[position]
            question = entry["question"]
            digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
            held_out = int.from_bytes(digest, "little") / 2**64 < self.held_out
            if held_out is not (self.split == "validation") or digest in seen:
                continue
            seen.add(digest)
            yield Row(self.name, position + 1, self._values(question, entry))
            if len(seen) == self.size:
                return
        raise DataError(
            f"{self.name}: {self._draws} draws gave {len(seen)} different problems of the split, fewer than "
            f"data.source.size={self.size}; lower it, or widen data.source.config"
        )

    def _values(self, question: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "prompt": self.prompt.replace("{question}", question),
            "question": question,
            "answer": entry["answer"],
            "dataset": self.dataset,
            "entry": json.dumps(entry, ensure_ascii=False),
        }

    def fingerprint(self) -> str:
        """Digest of the options and the library's version."""
        options = [self.dataset, self.size, self.split, self.held_out, self.seed, self.prompt, self.config]
        state = [_ROWS_VERSION, version("reasoning-gym"), options]
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Convert to plain containers, which the library requires."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
