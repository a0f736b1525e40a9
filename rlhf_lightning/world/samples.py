"""Samples of the base for every prompt: drawn once, cached with the base, judged by the gold reward."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_lightning.types import Example
from rlhf_lightning.world import grammar
from rlhf_lightning.world.base import TinyWorld, kept
from rlhf_lightning.world.gold import Gold, judge
from rlhf_lightning.world.grammar import Prompt, Split
from rlhf_lightning.world.tokenizer import SPECIAL, encode, end, words_of

#: Part of the key; increase it when the same base gives other samples.
SAMPLES_VERSION = 2
#: Samples per prompt.
SAMPLES = 32
#: Maximum tokens of a sample; the grammar's longest response has 37.
MAX_NEW_TOKENS = 40
_BATCH = 512


@dataclass(frozen=True)
class Sampled:
    """One response of the base."""

    words: tuple[str, ...]
    ids: tuple[int, ...]  #: with the end of the sequence, if the response ended by itself
    log_prob: float  #: summed over the response, under the base, in nats
    gold: Gold

    @property
    def text(self) -> str:
        """The words."""
        return " ".join(self.words)

    @property
    def is_text(self) -> bool:
        """True if the response ended by itself and has words only: a model may also produce special tokens."""
        return bool(self.words) and self.ids[-1] == end() and not SPECIAL & set(self.words)


def samples(base: TinyWorld, split: Split) -> dict[Prompt, list[Sampled]]:
    """Responses of the base to every prompt of a split, :data:`SAMPLES` each; the base is trained if need be."""
    read = _read(kept(_folder(base), functools.partial(_draw, base)))
    return {prompt: read[prompt] for prompt in grammar.prompts(split)}


def _folder(base: TinyWorld) -> Path:
    base_folder = base.folder()
    return base_folder.with_name(f"{base_folder.name}-samples-{SAMPLES}-{SAMPLES_VERSION}")


@functools.lru_cache(maxsize=2)
def _read(folder: Path) -> dict[Prompt, list[Sampled]]:
    rows = json.loads((folder / "samples.json").read_text())
    by_prompt: dict[Prompt, list[Sampled]] = {}
    for prompt, row in zip(grammar.prompts(), rows, strict=True):
        responses = [tuple(words_of(ids)) for ids in row["ids"]]
        by_prompt[prompt] = [
            Sampled(words, tuple(ids), log_prob, judge(prompt, words))
            for words, ids, log_prob in zip(responses, row["ids"], row["log_probs"], strict=True)
        ]
    return by_prompt


def _draw(base: TinyWorld, folder: Path) -> None:
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.decoding.generation import generate

    asked = [encode(prompt.text) for prompt in grammar.prompts()]
    actor = Actor(base.load())
    repeated = [prompt for prompt in asked for _ in range(SAMPLES)]
    responses = generate(actor, repeated, max_new_tokens=MAX_NEW_TOKENS, seed=base.seed, batch_size=_BATCH)
    grouped = [responses[start : start + SAMPLES] for start in range(0, len(responses), SAMPLES)]
    rows = [
        {"ids": group, "log_probs": [round(value, 5) for value in _log_probs(actor, prompt, group)]}
        for prompt, group in zip(asked, grouped, strict=True)
    ]
    (folder / "samples.json").write_text(json.dumps(rows))


def _log_probs(actor: object, prompt: list[int], responses: Sequence[list[int]]) -> list[float]:
    import torch

    from rlhf_lightning.data.batches.packing import pack

    with torch.no_grad():
        log_probs = actor(pack([Example(prompt, list(responses))], kind="supervised"))  # type: ignore[operator]
    return log_probs.sum().tolist()  # type: ignore[no-any-return]


def mean_gold(base: TinyWorld, split: Split) -> float:
    """Mean gold reward of the base's own responses, in points."""
    return float(np.mean([response.gold.reward for group in samples(base, split).values() for response in group]))
