"""The rows and the model that both sides of the comparison train on, written as plain files.

Token ids are made once, by this project's own pipeline, and each side is given the ids: neither tokenises anything.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from rlhf_lightning.data import DataSpec, Files, Packaged
from rlhf_lightning.data.tokenize import tokenize
from rlhf_lightning.models.sources import SmolLM2

#: Files of real pairs, used where they lie beside the checkout; the pairs that ship with the package otherwise.
REAL = ("sharegpt_pairs_200.json", "hh_dialogues_300.jsonl")
LIMIT = 256  #: tokens of a prompt, and of a response


def write(folder: Path, data: Path, pairs: int, seed: int = 0) -> str:
    """Write ``rows.json`` (``pairs`` shuffled rows of ids) and ``model/``; return where the rows came from."""
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
    (folder / "rows.json").write_text(json.dumps(rows[:pairs]))
    if not (folder / "model" / "config.json").is_file():
        source.load().save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    return ", ".join(path.name for path in real) or "the package's pairs"
