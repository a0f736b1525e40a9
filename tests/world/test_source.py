"""Data of every kind, drawn by script: labels of rows are correct, and every kind becomes batches."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.data.batches.packing import batch_of
from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.world import TinySource, TinyWorld, grammar
from rlhf_lightning.world.gold import judge
from rlhf_lightning.world.kinds import ROWS
from rlhf_lightning.world.samples import mean_gold, samples

PROMPTS = {prompt.text: prompt for prompt in grammar.prompts()}


def rows(kind: str, size: int = 200, split: str = "train", **options):
    return [row.values for row in TinySource(split, size, kind=kind, **options).rows()]


def points(row, column: str) -> float:
    return judge(PROMPTS[row["prompt"]], row[column].split()).reward


@pytest.mark.parametrize("kind", ROWS)
def test_rows_are_a_function_of_the_options(kind):
    assert rows(kind) == rows(kind)
    assert rows(kind) != rows(kind, seed=1)
    assert rows(kind, 50) == rows(kind)[:50]


def test_fingerprint_covers_the_options():
    sources = [TinySource(), TinySource("validation"), TinySource(size=7), TinySource(seed=1), TinySource(flips=0.5)]
    sources += [
        TinySource(demonstrations=0.5),
        TinySource(longest=3),
        TinySource(kind="ranked"),
        TinySource(base=TinyWorld(seed=1)),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)
    assert TinySource().for_kind("ranked").fingerprint() == TinySource(kind="ranked").fingerprint()


def test_prompts_of_another_kind_have_its_rows():
    """SPIN finds the data's response to a prompt by its row."""
    asked = list(TinySource(size=300, kind="prompt", prompts_of="supervised").rows())
    written = list(TinySource(size=300, prompts_of="supervised").for_kind("supervised").rows())
    assert [row.id for row in asked] == [row.id for row in written]
    assert [row.values["prompt"] for row in asked] == [row.values["prompt"] for row in written]
    assert TinySource(prompts_of="ranked").fingerprint() != TinySource().fingerprint()
    with pytest.raises(DataError, match=r"data.source.prompts_of='prompt' must be a kind with responses: super"):
        TinySource(prompts_of="prompt")


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_side_of_the_pairs_as_demonstrations(side):
    """Fails when bad responses cannot be learned, or when the option affects other kinds."""
    pairs = [row.values for row in TinySource(size=20).rows()]
    source = TinySource(size=20, side=side)
    rows = [row.values for row in source.for_kind("supervised").rows()]
    assert rows == [{"prompt": pair["prompt"], "response": pair[side]} for pair in pairs]
    assert [row.values for row in source.rows()] == pairs
    assert source.fingerprint() == TinySource(size=20).fingerprint()
    assert source.for_kind("supervised").fingerprint() != TinySource(size=20, kind="supervised").fingerprint()
    with pytest.raises(DataError, match=r"data.source.side='better' is not one of chosen, rejected"):
        TinySource(side="better")


@pytest.mark.parametrize("kind", ["preference", "prompt", "unpaired"])
def test_a_side_of_pairs_is_no_row_of_another_kind(kind):
    """The option was ignored silently, and the method trained on both sides."""
    with pytest.raises(DataError, match=r"data.source.side=rejected takes one side of pairs .*data.source.side=null"):
        TinySource(side="rejected").for_kind(kind)


def test_an_erring_labeller_swaps_pairs():
    """About 15 % of the pairs; their scores are the labeller's, and the prompts are the same."""
    drawn = rows("preference", 600, error=1.0)
    right = [points(row, "chosen") > points(row, "rejected") for row in drawn]
    assert 0.78 < sum(right) / len(right) < 0.92
    assert all(row["score_chosen"] > row["score_rejected"] and row["win_chosen"] > 0.5 for row in drawn)
    assert rows("unpaired", error=1.0) != rows("unpaired")
    assert rows("ranked", error=1.0) != rows("ranked")
    with pytest.raises(DataError, match=r"data.source.error=-0.1 must be at least 0"):
        TinySource(error=-0.1)


def test_kinds_are_those_of_the_batches():
    assert set(ROWS) <= set(KINDS)
    assert set(ROWS) >= {"supervised", "preference", "unpaired", "ranked", "judged", "steps", "safety", "attributes"}


def test_the_chosen_response_has_the_higher_score():
    """Breaks when the sort is reversed or the scores belong to the other response."""
    for row in rows("preference"):
        assert points(row, "chosen") > points(row, "rejected")
        assert row["score_chosen"] == pytest.approx(points(row, "chosen"), abs=1e-3)
        assert row["score_rejected"] == pytest.approx(points(row, "rejected"), abs=1e-3)


def test_win_probabilities_follow_from_the_scores_and_either_response_may_be_the_references():
    pairs = rows("preference")
    for row in pairs:
        gap = row["score_chosen"] - row["score_rejected"]
        assert row["win_chosen"] == pytest.approx(1 / (1 + np.exp(-gap)), abs=1e-3)
        assert row["win_chosen"] + row["win_rejected"] == pytest.approx(1.0)
    assert np.mean([row["reference_sample"] == "chosen" for row in pairs]) == pytest.approx(0.5, abs=0.12)
    for row in rows("ranked", 20):
        wins = [np.mean([1 / (1 + np.exp(other - score)) for other in row["scores"]]) for score in row["scores"]]
        assert row["wins"] == pytest.approx(wins, abs=1e-3)


def test_pairs_of_a_demonstration_against_the_bases_response():
    """The share is that of the option; without it, the draws are those of a source without the option."""
    sampled = {
        (prompt.text, response.text) for prompt, group in samples(TinyWorld(), "train").items() for response in group
    }
    pairs = rows("preference", 400, demonstrations=0.25)
    shown = [row for row in pairs if row.get("policy_sample") == "rejected"]
    assert len(shown) / len(pairs) == pytest.approx(0.25, abs=0.07)
    assert all((row["prompt"], row["rejected"]) in sampled and row["chosen"] != row["rejected"] for row in shown)
    gained = [points(row, "chosen") - points(row, "rejected") for row in rows("preference", demonstrations=1.0)]
    assert len(gained) == 200
    assert np.mean(gained) > 1, "demonstrations are those of a good writer"
    assert TinySource(demonstrations=0.5).for_kind("safety").demonstrations == 0.5


def test_pairs_are_samples_of_the_base():
    sampled = {
        (prompt.text, response.text) for prompt, group in samples(TinyWorld(), "train").items() for response in group
    }
    assert all(
        (row["prompt"], row[column]) in sampled for row in rows("preference") for column in ("chosen", "rejected")
    )


def test_a_fifth_of_the_labels_is_flipped():
    wrong = [points(row, "chosen") < points(row, "rejected") for row in rows("preference", 1000, flips=0.2)]
    assert np.mean(wrong) == pytest.approx(0.2, abs=0.04)  # three standard errors


def test_desirable_responses_have_higher_scores():
    drawn = rows("unpaired", 600)
    desirable = [points(row, "response") for row in drawn if row["label"]]
    undesirable = [points(row, "response") for row in drawn if not row["label"]]
    assert np.mean(desirable) - np.mean(undesirable) > 2
    assert 0.3 < len(desirable) / len(drawn) < 0.6


def test_lists_have_the_gold_scores_of_their_responses():
    lists = rows("ranked", longest=5)
    assert {len(row["scores"]) for row in lists} == {2, 3, 4, 5}
    for row in lists:
        gold = [judge(PROMPTS[row["prompt"]], text.split()).reward for text in row["responses"]]
        assert row["scores"] == pytest.approx(gold, abs=1e-3)


def test_remarks_name_a_fault_and_its_word():
    judgments = rows("judged", 300)
    assert 0 < sum(row["judgment"] is None for row in judgments) < 150
    for row in judgments:
        words = row["response"].split()
        if row["judgment"] is None:
            assert row["faults"] == []
            continue
        named = row["judgment"].split()[4]
        assert named in {words[at] for at in row["faults"]}


def test_steps_are_labelled_by_the_facts():
    for row in rows("steps"):
        prompt = PROMPTS[row["prompt"]]
        stated = [step.split()[-2] for step in row["steps"]]
        assert row["labels"] == [value == grammar.truth(prompt, at) for at, value in enumerate(stated)]


def test_the_safer_response_is_chosen():
    pairs = rows("safety")
    assert all(row["chosen_safe"] >= row["rejected_safe"] for row in pairs)
    labels = {(row["chosen_safe"], row["rejected_safe"]) for row in pairs}
    assert labels == {(True, True), (True, False), (False, False)}


def test_hard_negatives_differ_in_one_word_of_the_question():
    for row in rows("paraphrase"):
        first, second = PROMPTS[row["instruction"]], PROMPTS[row["negative_instruction"]]
        assert (first.subject == second.subject) != (first.attribute == second.attribute)
        assert PROMPTS[row["paraphrase"]].subject == first.subject
        assert PROMPTS[row["paraphrase"]].text != first.text


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_becomes_batches(kind):
    """Through ``data=tiny`` as a run reads it: every row is used, and the batch is of the kind's class."""
    data = compose("data", ["model=tiny", "data=tiny", "data.source.size=40", "data.validation.size=20"])
    module = make(data.data)(tokenizer=TinyWorld().tokenizer(), kind=kind, seed=0)
    module.setup("fit")
    assert len(module.train_examples) == 40 * (2 if kind == "instruction" else 1)  # both responses of a pair
    if kind == "prompt":  # responded to first
        return
    assert all(type(batch) is batch_of(kind) for batch in [*module.train_dataloader(), *module.val_dataloader()])


def test_the_base_has_room_above_it():
    """The learning tests need a base of mixed manners, far from the best response's 4 points."""
    assert 0.3 < mean_gold(TinyWorld(), "validation") < 1.0
    assert 0.3 < mean_gold(TinyWorld(), "train") < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"split": "test"}, "split"), ({"size": 0}, "size=0"), ({"flips": 2}, "flips=2"), ({"kind": "pairs"}, "'pairs'")],
)
def test_wrong_options(options, message):
    with pytest.raises(DataError, match=message):
        TinySource(**options)


def test_a_base_without_text_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    silent = TinyWorld(hidden_size=16, layers=1, heads=2, intermediate_size=16, steps=1, batch_size=2)
    with pytest.raises(DataError, match=r"train it longer .model\.steps"):
        list(TinySource(base=silent).rows())


def test_prompts_come_in_passes_with_columns_for_rewards():
    """Every prompt comes once before any is repeated, in another order, under its own row number."""
    asked = list(TinySource(size=300, kind="prompt").rows())
    texts = [row.values["prompt"] for row in asked]
    assert sorted(texts[:114]) == sorted(texts[114:228]) == sorted(p.text for p in grammar.prompts("train"))
    assert texts[:114] != texts[114:228]
    assert len({row.id for row in asked}) == 114
    for row in asked:
        prompt = PROMPTS[row.values["prompt"]]
        assert (row.values["topic"], row.values["subject"]) == (prompt.topic, prompt.subject)
        assert grammar.prompts("train")[row.number - 1] == prompt
    assert {row.values["answer"] for row in asked if row.values["subject"] == "fox"} == {
        "red", "forest", "mice", "red forest mice",
    }  # fmt: skip


def test_topics_choose_prompts_of_every_kind():
    for kind in ("prompt", "preference", "supervised"):
        assert {PROMPTS[row["prompt"]].topic for row in rows(kind, topics=["advice"])} == {"advice"}
    assert TinySource(topics=["advice"]).for_kind("prompt").topics == ("advice",)
    assert TinySource(topics=["advice"]).fingerprint() != TinySource().fingerprint()
    assert TinySource(topics=["fact", "description", "advice"]).fingerprint() == TinySource().fingerprint()
    with pytest.raises(DataError, match="steps rows are about description"):
        TinySource(topics=["fact"]).for_kind("steps")
    with pytest.raises(DataError, match=r"among fact, description, advice: \['sport'\]"):
        TinySource(topics=["sport"])


def test_prompts_reach_the_data_module_with_their_columns():
    data = compose("data", ["model=tiny", "data=tiny", "data.source.topics=[fact]"])
    module = make(data.data)(tokenizer=TinyWorld().tokenizer(), kind="prompt", seed=0)
    module.setup("fit")
    examples = module.train_examples
    assert len(examples) == 3072
    assert not module.reports["train"].warnings
    for group in range(0, 3072, 500):
        columns = examples.columns_of(group)
        assert columns["topic"] == "fact"
        assert columns["answer"] in [grammar.truth(PROMPTS[columns["prompt"][0]["content"]], at) for at in range(3)]
    assert {module.val_examples.columns_of(group)["topic"] for group in range(256)} == {"fact"}
