"""A proposer without a language model: its edits, and a search with it that finds good phrases."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning.prompting.gepa import GEPA
from rlhf_lightning.prompting.jsonl import Journal
from rlhf_lightning.prompting.language import optimizer_of
from rlhf_lightning.prompting.opro import OPRO, cleaned
from rlhf_lightning.prompting.phrases import Phrases, shown_text
from rlhf_lightning.prompting.search import Bench, Trial, best, run
from rlhf_lightning.rewards.asking import Ask


class PhraseTask:
    """A task whose examples score a text by one phrase each."""

    phrases = ("be kind", "briefly", "please")

    def __len__(self) -> int:
        return len(self.phrases)

    def trials(self, text, examples):
        return [Trial(float(self.phrases[at] in text)) for at in examples]

    def shown(self, example, placeholder):
        return placeholder, ""


def one(proposer: Phrases, question: str, seed: int = 0, temperature: float = 0.0) -> list[str]:
    (answer,) = proposer.ask_each([[{"content": question}]], max_tokens=9, temperature=temperature, seed=seed)
    return cleaned(answer, sentence=False).split()


def test_it_reads_the_best_text_of_either_search():
    assert shown_text("text:\nworst\nscore:\n3\n\ntext:\nbetter\nscore:\n9\n\nWrite <TEXT> and </TEXT>.") == "better"
    assert shown_text("with this:\n<TEXT>\nthe parent\n</TEXT>\n\nWrite it between <TEXT> and </TEXT>.") == "the parent"
    assert shown_text("nothing") == ""


def test_one_edit_at_temperature_0():
    proposer = Phrases(["very well", "now"], most=3)
    assert isinstance(proposer, Ask)
    question = "text:\ngo very well\nscore:\n1\n"
    lengths = set()
    for seed in range(40):
        words = " ".join(one(proposer, question, seed)).replace("very well", "very_well").split()
        assert sum(word in ("go", "very_well") for word in words) >= 1
        lengths.add(len(words))
        assert one(proposer, question, seed) == one(proposer, question, seed)
    assert lengths == {1, 2, 3}
    wild = {tuple(one(proposer, question, seed, temperature=4.0)) for seed in range(40)}
    tame = {tuple(one(proposer, question, seed)) for seed in range(40)}
    assert len(wild) > len(tame)


@pytest.mark.parametrize("search", [OPRO(steps=15, threshold=None, sentence=False), GEPA(steps=80, sentence=False)])
def test_a_search_with_it_finds_the_phrases_that_score(search, tmp_path: Path):
    proposer = Phrases([*PhraseTask.phrases, "now", "the"], most=5)
    with Journal(tmp_path / "search.jsonl") as journal:
        bench = Bench(optimizer_of(proposer, 1.0, 8), PhraseTask(), journal)
        *_, (_, pool) = run(search, ["go"], bench)
    assert best(pool).mean == 1.0


@pytest.mark.parametrize("phrases", [[], ["a", " "]])
def test_refused(phrases):
    with pytest.raises(ValueError, match=r"proposer\.phrases needs phrases, none of them empty"):
        Phrases(phrases)


def test_a_text_stays_as_it_was_written():
    assert cleaned("<TEXT>be **kind** </TEXT>") == "Be kind."
    assert cleaned("<TEXT>be kind </TEXT>", sentence=False) == "be kind"
