"""The quickstart's judge, by hand-worked scores."""

import json
from pathlib import Path

import pytest

from rlhf_lightning.quickstart.make_pairs import MINIMAL_GAP, make_pair
from rlhf_lightning.quickstart.prompts import questions
from rlhf_lightning.quickstart.rule import brevity, repetition, score

FILES = Path(__file__).parents[2] / "rlhf_lightning" / "data" / "files"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # one sentence, 8 words: brevity 1; no "you", no kind word. Fails when the lower limit of words moves up.
        ("The sky looks blue because air scatters light.", 1.0),
        # + 0.5 for "your", + 0.5 for "enjoy": fails when either term or its weight is lost.
        ("Take your time and enjoy a slow walk.", 2.0),
        # 4 words of 8 needed: brevity 0.5. Fails without the penalty for too few words.
        ("Air scatters blue light.", 0.5),
        # 3 sentences lie a third of the way from 2 to 5: brevity 2/3. Fails when sentences are not counted.
        ("Air scatters light. Blue scatters most. So skies are blue.", 2 / 3),
        # 10 words, 8 triples of which 2 are different: repetition 0.75, brevity 1. Fails when the sign is flipped.
        ("so it is so it is so it is so.", 0.25 + 0.125),
    ],
)
def test_score_by_hand(text: str, expected: float) -> None:
    assert score(text) == pytest.approx(expected, abs=1e-9)


def test_brevity_falls_with_words() -> None:
    words = [brevity("word " * n + ".") for n in (8, 30, 50, 70, 90)]
    assert words == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])


def test_repetition_of_a_loop() -> None:
    assert repetition("a b c d e f") == 0
    assert repetition("a b c " * 10) == pytest.approx(1 - 3 / 28)


def test_pair_is_best_against_worst() -> None:
    best, worst = "Take your time and enjoy a slow walk.", "Walk."
    pair = make_pair("How?", [worst, "The sky looks blue because air scatters light.", best, ""])
    assert pair is not None
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (best, worst)
    assert make_pair("How?", [best, best]) is None
    assert make_pair("How?", [best, best.replace("slow", "long")]) is None


def test_shipped_pairs_follow_the_rule() -> None:
    asked = questions()
    assert len(set(asked)) == len(asked)
    seen = []
    for name in ("smollm2_pairs.jsonl", "smollm2_pairs_validation.jsonl"):
        for line in (FILES / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            chosen, rejected = (score(row[side][0]["content"]) for side in ("chosen", "rejected"))
            assert chosen - rejected >= MINIMAL_GAP
            assert (row["score_chosen"], row["score_rejected"]) == (round(chosen, 4), round(rejected, 4))
            seen.append(row["prompt"][0]["content"])
    assert len(set(seen)) == len(seen)  # no question is both trained on and held out
    assert set(seen) <= set(asked)
