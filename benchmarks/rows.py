"""The rows and the model that both sides of the comparison train on, written as plain files.

Token ids are made once, by this project's own pipeline, and each side is given the ids: neither tokenises anything.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from rlhf_lightning.data import DataSpec, Files, Packaged
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.models.sources import SmolLM2

#: Files of real pairs, used where they lie beside the checkout; the pairs that ship with the package otherwise.
REAL = ("sharegpt_pairs_200.json", "hh_dialogues_300.jsonl")
LIMIT = 256  #: tokens of a prompt, and of a response
#: The rows that each method trains on, and how many of them come from a pair.
KIND = {"dpo": "pairs", "kto": "unpaired", "bradley_terry": "pairs", "sft": "supervised"}
ROWS_A_PAIR = {"dpo": 1, "kto": 2, "bradley_terry": 1, "sft": 2}


def write(folder: Path, data: Path, pairs: int, seed: int = 0) -> str:
    """Write shuffled rows of ids of every kind and ``model/``; return where the rows came from."""
    source = SmolLM2()
    tokenizer = source.tokenizer()
    spec = DataSpec(
        max_length=None,
        max_prompt_length=LIMIT,
        max_response_length=LIMIT,
        too_long="keep_end",
        on_bad_row="exclude",
        cache=False,
    )
    real = [data / name for name in REAL if (data / name).is_file()]
    sources = [Files(str(path)) for path in real] or [Packaged("smollm2_pairs")]
    rows = []
    for part in sources:
        tokenized = tokenize(part, tokenizer, spec, "preference")
        rows += [(example.prompt, *example.responses) for example in tokenized.examples]
    random.Random(seed).shuffle(rows)
    if len(rows) < pairs:
        raise SystemExit(f"{len(rows)} pairs are too few for {pairs}: take fewer or smaller batches")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(rows[:pairs]))
    single = unpaired(rows[:pairs])
    (folder / "unpaired.json").write_text(json.dumps(single))
    (folder / "supervised.json").write_text(json.dumps([row[:2] for row in single]))
    if not (folder / "model" / "config.json").is_file():
        source.load().save_pretrained(folder / "model")
        tokenizer.pad_token_id = 0  # not EOS: transformers reads a reward at the last token that is not padding
        tokenizer.save_pretrained(folder / "model")
    return ", ".join(path.name for path in real) or "the package's pairs"


def unpaired(pairs: list[tuple[list[int], ...]]) -> list[list[list[int]]]:
    """Every response as a separate row: prompt, response, the response of the row before, label.

    A chosen response stands before the rejected one of another pair, so that the row before has another prompt.
    """
    mixed = []
    for number, (prompt, chosen, _) in enumerate(pairs):
        other, _, rejected = pairs[(number + 2) % len(pairs)]
        mixed += [(prompt, chosen, [1]), (other, rejected, [0])]
    return [[prompt, response, mixed[i - 1][1], label] for i, (prompt, response, label) in enumerate(mixed)]
