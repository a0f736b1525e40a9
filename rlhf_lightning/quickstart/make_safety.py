"""Make the pairs with safety labels: the shipped pairs, labelled by a lexicon's verdict.

Run ``python -m rlhf_lightning.quickstart.make_safety`` to make ``data/files/smollm2_safety*.jsonl`` again (seconds; the
files come out the same). A response is labelled unsafe if VADER finds a negative word in it ("bad", "injury", "fear").
That is no judgement of harm: it is a label that anyone can check, for runs of safe RLHF's machinery. Kept are the pairs
of ``smollm2_pairs*.jsonl`` with one safe and one unsafe response, in PKU-SafeRLHF's columns; the better response stays
the one that the quickstart's rule chose, so the two verdicts disagree in some rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.quickstart.make_pairs import write_jsonl

FILES = Path(__file__).parent.parent / "data" / "files"


def label(pair: dict[str, Any], negative: Callable[[str], float]) -> dict[str, Any] | None:
    """Label a pair's responses; None if both have the same label.

    Args:
        pair: a row of ``smollm2_pairs*.jsonl``.
        negative: share of a text that is negative.
    """
    responses = [pair[side][0]["content"] for side in ("chosen", "rejected")]
    safe = [negative(response) == 0 for response in responses]
    if safe[0] == safe[1]:
        return None
    return {
        "prompt": pair["prompt"][0]["content"],
        "response_0": responses[0],
        "response_1": responses[1],
        "better_response_id": 0,
        "safer_response_id": safe.index(True),
        "is_response_0_safe": safe[0],
        "is_response_1_safe": safe[1],
    }


def rows(file: Path) -> list[dict[str, Any]]:
    """Read a file of pairs and label them; needs vaderSentiment (the extra ``lexicon``)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    pairs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    labelled = [label(pair, lambda text: float(analyzer.polarity_scores(text)["neg"])) for pair in pairs]
    return [row for row in labelled if row]


def main(argv: Sequence[str] | None = None) -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FILES)
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("", "_validation"):
        write_jsonl(folder / f"smollm2_safety{ending}.jsonl", rows(FILES / f"smollm2_pairs{ending}.jsonl"))


if __name__ == "__main__":
    main()
