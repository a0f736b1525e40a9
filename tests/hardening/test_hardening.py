"""Mining, relabelling and the loop, with detectors that are plain rules."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from rlhf_lightning.hardening import (
    Detection,
    Detector,
    Labelled,
    Text,
    classifier,
    detection,
    harden,
    mine_texts,
    read_rollouts,
    write_rows,
)
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer, prepare_tokenizer
from rlhf_lightning.rewards import ClassifierReward
from rlhf_lightning.types import sample_groups
from rlhf_lightning.world.tokenizer import encode, end, tiny_tokenizer

PROMPTS = [f"question {n}" for n in range(40)]


def looks_for(*words: str) -> Detector:
    def detector(texts: Sequence[Text]) -> list[float]:
        return [0.9 if any(word in text.response for word in words) else 0.1 for text in texts]

    return detector


def oracle(text: Text) -> bool:
    return "please" in text.response or "thanks" in text.response


def written(*responses: str) -> list[Text]:
    return [Text(prompt, response) for prompt in PROMPTS for response in responses]


def labelled(*responses: str) -> list[Labelled]:
    return [Labelled(text, oracle(text)) for text in written(*responses)]


def fit(rows: Sequence[Labelled]) -> Detector:
    """Learns the words of the positives that no negative has."""
    negative = {word for row in rows if not row.label for word in row.text.response.split()}
    positive = {word for row in rows if row.label for word in row.text.response.split()}
    return looks_for(*(positive - negative))


def test_rates():
    """By hand: 2 of 3 positives and 1 of 4 negatives are flagged."""
    rows = [Labelled(Text("", text), label) for text, label in zip("aabbcaa", [1, 1, 1, 0, 0, 0, 0], strict=True)]
    rows[5] = Labelled(Text("", "d"), False)
    assert detection(looks_for("a"), rows) == Detection(2 / 3, 1 / 4, 3, 4)
    assert detection(looks_for("a"), rows, threshold=0.9).recall == 2 / 3, "a probability at the threshold is flagged"
    assert detection(looks_for("a"), rows, threshold=0.95) == Detection(0.0, 0.0, 3, 4)
    assert math.isnan(detection(looks_for("a"), rows[3:]).recall)


def test_wrong_number_of_probabilities():
    with pytest.raises(ValueError, match="returned 1 probabilities for 2 texts"):
        detection(lambda texts: [0.5], labelled("x")[:2])


def test_mining():
    texts = written("please", "thanks", "no", "what") * 2
    mined = mine_texts(texts, looks_for("please"), oracle)
    rows = [*mined.train, *mined.held_out]
    assert mined.missed == 40
    assert {row.text.response for row in rows if row.label} == {"thanks"}
    assert len(rows) == len(set(rows)) == 80
    assert sum(row.label for row in mined.train) * 2 == len(mined.train), "as many negatives in each part"
    assert not {row.text.prompt for row in mined.train} & {row.text.prompt for row in mined.held_out}
    assert 10 <= len({row.text.prompt for row in mined.held_out}) <= 30


def test_negatives_near_the_boundary_come_first():
    def unsure(texts: Sequence[Text]) -> list[float]:
        return [{"thanks": 0.1, "no": 0.2, "what": 0.4}[text.response] for text in texts]

    mined = mine_texts(written("thanks", "no", "what"), unsure, oracle)
    assert {row.text.response for row in mined.train if not row.label} == {"what"}


def test_the_split_is_the_same_in_every_round():
    one = mine_texts(written("thanks", "no"), looks_for(), oracle)
    other = mine_texts(written("thanks a lot", "never"), looks_for(), oracle)
    assert {row.text.prompt for row in one.train} == {row.text.prompt for row in other.train}


def test_hardening_recovers_what_was_missed():
    data = {"train": labelled("please", "no", "what"), "test": labelled("please sir", "no sir")}
    attacks: list[Detector] = []

    def attack(detector: Detector) -> list[Text]:
        attacks.append(detector)
        return written("thanks", "sir")

    detector, rounds = harden(looks_for("please"), attack=attack, oracle=oracle, fit=fit, rounds=3, **data)
    first, second = rounds
    assert first.before["original"] == first.after["original"] == Detection(1.0, 0.0, 40, 40)
    assert first.before["mined_1"].recall == 0.0
    assert first.after["mined_1"].recall == 1.0
    assert first.after["mined_1"].false_positive_rate == 0.0
    assert second.mined.missed == 0, "nothing was left, so the third round is not needed"
    assert attacks[1] is detector
    assert second.after["mined_1"].recall == 1.0


def test_forgetting_of_original_rows_is_reported():
    """A detector trained on the mined rows alone forgets the original ones; the report must show it."""
    data = {"train": labelled("please", "no"), "test": labelled("please", "no")}
    forgetful = lambda rows: fit([row for row in rows if "please" not in row.text.response])  # noqa: E731
    options = {"attack": lambda _: written("thanks", "sir"), "oracle": oracle, "fit": forgetful}
    _, [done] = harden(looks_for("please"), **options, **data)
    assert (done.before["original"].recall, done.after["original"].recall) == (1.0, 0.0)
    assert done.after["mined_1"].recall == 1.0


def test_rollouts(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    prompt = encode("what does the fox eat ?")
    for number, food in enumerate(("mice", "honey", "seeds")):
        rows = [
            {"prompt_ids": prompt, "ids": [*encode(f"the fox eats {food} ."), end()], "finish": "stop"},
            {"prompt_ids": prompt, "ids": encode("the fox"), "finish": "length"},
        ]
        (tmp_path / f"0000{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [Text("what does the fox eat ?", f"the fox eats {food} .") for food in ("mice", "honey", "seeds")]
    assert read_rollouts(tmp_path, tokenizer) == texts, "without the end of the sequence, and what was not cut off"
    assert read_rollouts(tmp_path, tokenizer, last=1) == texts[2:]
    with pytest.raises(FileNotFoundError, match="has no rollouts"):
        read_rollouts(tmp_path / "nowhere", tokenizer)


def test_rows_are_labelled_responses(tmp_path: Path):
    file = write_rows(tmp_path / "deep" / "rows.jsonl", labelled("please")[:1])
    assert json.loads(file.read_text()) == {"prompt": "question 0", "response": "please", "label": True}


LABELS = {0: "plain", 1: "polite", 2: "rude"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder of three labels with random weights."""
    torch.manual_seed(0)
    tokenizer = prepare_tokenizer(byte_tokenizer())
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        id2label=LABELS,
        initializer_range=0.5,
    )
    path = tmp_path_factory.mktemp("classifier")
    BertForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_probabilities_of_labels(folder: str):
    def ids(text: str) -> list[int]:
        return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]

    groups = sample_groups([ids("why?")], [[ids("yes"), ids("no")]])
    probabilities = [ClassifierReward(path=folder, label=label)(groups)[0] for label in LABELS.values()]
    assert [sum(column) for column in zip(*probabilities, strict=True)] == pytest.approx([1.0, 1.0])
    assert len({round(value, 6) for row in probabilities for value in row if value is not None}) == 6
    assert ClassifierReward(path=folder, label=2)(groups)[0] == probabilities[2]
    detector = classifier(folder, label="polite", device="cpu")
    assert all(0 < p < 1 for p in detector([Text("why?", "yes"), Text("why?", "no")]))


@pytest.mark.parametrize(
    ("label", "message"),
    [(None, "reward.label is missing: .* has the labels plain, polite, rude"), ("kind", "reward.label='kind', but")],
)
def test_wrong_labels_are_refused(folder: str, label: str | None, message: str):
    with pytest.raises(ValueError, match=message):
        ClassifierReward(path=folder, label=label)
