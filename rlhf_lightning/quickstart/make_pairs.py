"""Make the quickstart's preference pairs: sample the model's own responses and let the rule choose.

Run ``python -m rlhf_lightning.quickstart.make_pairs`` to make ``data/files/smollm2_pairs*.jsonl`` again (about ten
minutes on two cores; the samples will differ). Nothing in the files is written by hand: a pair is the best and the
worst, by ``rule.score``, of ``SAMPLES`` responses of SmolLM2-135M-Instruct to one question at temperature 1. Responses
that were cut off are left out.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.quickstart.prompts import questions
from rlhf_lightning.quickstart.rule import score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES = 8
MAX_NEW_TOKENS = 96
MINIMAL_GAP = 0.5  # smaller differences of scores are not meaningful
VALIDATION_PAIRS = 48

log = logging.getLogger(__name__)


def make_pair(question: str, responses: Sequence[str]) -> dict[str, Any] | None:
    """Pair the best and the worst response to a question; None if their scores are closer than ``MINIMAL_GAP``."""
    ranked = sorted(
        {response.strip() for response in responses} - {""}, key=lambda response: (score(response), response)
    )
    if len(ranked) < 2 or score(ranked[-1]) - score(ranked[0]) < MINIMAL_GAP:
        return None
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": ranked[-1]}],
        "rejected": [{"role": "assistant", "content": ranked[0]}],
        "score_chosen": round(score(ranked[-1]), 4),
        "score_rejected": round(score(ranked[0]), 4),
    }


def sample_responses(asked: Sequence[str], *, samples: int, seed: int) -> list[list[str]]:
    """Sample responses to each question; those that do not end within ``MAX_NEW_TOKENS`` tokens are empty."""
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.decoding.generation import generate
    from rlhf_lightning.models.sources import SmolLM2

    source = SmolLM2(dtype="bfloat16")
    tokenizer, actor = source.tokenizer(), Actor(source.load())
    prompts = [_prompt(tokenizer, question) for question in asked]
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    drawn = generate(
        actor, repeated, max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, top_p=0.95, seed=seed, batch_size=64
    )
    texts = [_text(tokenizer, ids) for ids in drawn]
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def _prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    turns = [{"role": "user", "content": question}]
    text = str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Text of a response that ended by itself; otherwise empty."""
    ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
    return str(tokenizer.decode(ids, skip_special_tokens=True)) if ended else ""


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Sample, judge and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent.parent / "data" / "files")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked = questions(arguments.seed)
    responses_by_question = sample_responses(asked, samples=SAMPLES, seed=arguments.seed)
    pairs = [
        pair
        for question, responses in zip(asked, responses_by_question, strict=True)
        if (pair := make_pair(question, responses))
    ]
    log.info("%d questions, %d pairs with a gap of at least %.1f", len(asked), len(pairs), MINIMAL_GAP)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(arguments.folder / "smollm2_pairs.jsonl", pairs[VALIDATION_PAIRS:])
    write_jsonl(arguments.folder / "smollm2_pairs_validation.jsonl", pairs[:VALIDATION_PAIRS])


if __name__ == "__main__":
    main()
