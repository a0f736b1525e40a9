"""The rows and the model that both sides of the comparison train on, written as plain files.

Token ids are made once, by this project's own pipeline, and each side is given the ids: neither tokenises anything.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from rlhf_lightning.data import DataSpec, Files, Packaged
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.models.sources import SmolLM2

#: Files of real pairs, used where they lie beside the checkout; the pairs that ship with the package otherwise.
REAL = ("sharegpt_pairs_200.json", "hh_dialogues_300.jsonl")
LIMIT = 256  #: tokens of a prompt, and of a response
#: The rows that each method trains on, and how many of them come from a pair.
KIND = {"dpo": "pairs", "kto": "unpaired", "bradley_terry": "pairs", "sft": "supervised"}
ROWS_A_PAIR = {"dpo": 1, "kto": 2, "bradley_terry": 1, "sft": 2}


def write(folder: Path, data: Path, pairs: int, seed: int = 0, *, grouped: int = 0) -> str:
    """Write rows of ids of every kind and ``model/``; return where the rows came from.

    Args:
        folder: to write into.
        data: folder of real pairs.
        pairs: how many pairs' worth of rows to write.
        seed: of the order.
        grouped: pairs of a batch whose rows are to have about the same length; 0: rows in a random order.
    """
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
    of_kind = {"pairs": rows if grouped else rows[:pairs]}
    of_kind["unpaired"] = unpaired(of_kind["pairs"])
    of_kind["supervised"] = [row[:2] for row in of_kind["unpaired"]]
    for kind, made in of_kind.items():
        rows_a_pair = 1 if kind == "pairs" else 2
        ordered = by_length(made, grouped * rows_a_pair, seed) if grouped else made
        (folder / f"{kind}.json").write_text(json.dumps(ordered[: pairs * rows_a_pair]))
    if not (folder / "model" / "config.json").is_file():
        source.load().save_pretrained(folder / "model")
        tokenizer.pad_token_id = 0  # not EOS: transformers reads a reward at the last token that is not padding
        tokenizer.save_pretrained(folder / "model")
    return ", ".join(path.name for path in real) or "the package's pairs"


def by_length(rows: list[Any], size: int, seed: int) -> list[Any]:
    """Batches of rows of about the same length, as group-by-length makes them; the batches in a random order."""
    ordered = sorted(rows, key=lambda row: len(row[0]) + max(map(len, row[1:3])))
    batches = [ordered[start : start + size] for start in range(0, len(ordered) - size + 1, size)]
    random.Random(seed).shuffle(batches)
    return [row for batch in batches for row in batch]


def unpaired(pairs: list[tuple[list[int], ...]]) -> list[list[list[int]]]:
    """Every response as a separate row: prompt, response, the response of the row before, label.

    A chosen response stands before the rejected one of another pair, so that the row before has another prompt.
    """
    mixed = []
    for number, (prompt, chosen, _) in enumerate(pairs):
        other, _, rejected = pairs[(number + 2) % len(pairs)]
        mixed += [(prompt, chosen, [1]), (other, rejected, [0])]
    return [[prompt, response, mixed[i - 1][1], label] for i, (prompt, response, label) in enumerate(mixed)]
