"""Pairs, lists and labels into one another: nothing lost without a count, nothing made up."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.rows.problems import DataError, DataReport
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.converters import Converter
from rlhf_lightning.data.tokens.tokenize import split, tokenize
from rlhf_lightning.types import Example
from tests.helpers import tokenizers
from tests.helpers.rows import Rows

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
LIST = {"prompt": "a", "responses": ["b", "c", "d", "e"], "scores": [4, 2, 2, 1]}


def made(kind, *rows, **options):
    spec = DataSpec(cache=False, template="none", **options)
    return tokenize(Rows(*rows), tokenizers.gpt2_like(), spec, kind)


def texts(result):
    return ["".join(chr(ids[0]) for ids in example.responses) for example in result.examples]


@st.composite
def lists(draw: st.DrawFn) -> list[tuple[list[list[int]], list[float]]]:
    """Responses and falling scores of a few lists, ties and equal responses among them."""
    made = []
    for _ in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 5))
        responses = [draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)) for _ in range(count)]
        scores = sorted((float(draw(st.integers(0, 3))) for _ in range(count)), reverse=True)
        made.append((responses, scores))
    return made


def ranked(drawn):
    return [
        ("ranked", Example([number + 1], responses, numbers={"score": scores}))
        for number, (responses, scores) in enumerate(drawn)
    ]


@settings(max_examples=150, deadline=None)
@given(lists(), st.sampled_from(["all", "adjacent", "best_worst"]))
def test_lists_become_exactly_the_pairs_that_their_scores_order(drawn, pairs) -> None:
    # fails if a tie is kept, a pair is turned round, the margin is not the gap, or a loss is not counted
    expected, ties, same = [], 0, 0
    for number, (responses, scores) in enumerate(drawn):
        slots = range(len(scores))
        ends = [(0, len(scores) - 1)] if len(scores) > 1 else []
        for i, j in {"all": combinations(slots, 2), "adjacent": pairwise(slots), "best_worst": ends}[pairs]:
            if scores[i] == scores[j]:
                ties += 1
            elif responses[i] == responses[j]:
                same += 1
            else:
                expected.append(([number + 1], [responses[i], responses[j]], scores[i] - scores[j]))
    converter = Converter("preference", DataSpec(pairs=pairs, gather=False))
    got = [(e.prompt, e.responses, e.margin) for e in converter(ranked(drawn))]
    assert got == expected
    assert (converter.tied, converter.same) == (ties, same)
    assert sum(converter.made.values()) == len(expected)


@settings(max_examples=100, deadline=None)
@given(lists(), st.one_of(st.floats(-1, 4), st.just("mean")))
def test_lists_become_one_labelled_response_each(drawn, threshold) -> None:
    converter = Converter("unpaired", DataSpec(threshold=threshold, gather=False))
    got = [(e.responses[0], e.numbers["desirable"]) for e in converter(ranked(drawn))]
    expected, ties = [], 0
    for responses, scores in drawn:
        mean = sum(scores) / len(scores)
        for response, score in zip(responses, scores, strict=True):
            if threshold == "mean" and score == mean:
                ties += 1
            else:
                expected.append((response, [float(score > mean if threshold == "mean" else score >= threshold)]))
    assert got == expected
    assert converter.tied == ties


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=12))
def test_scored_rows_are_gathered_by_prompt(rows) -> None:
    # fails if a row is lost, two prompts share a list, or a list is not in the order of its scores
    natives = [
        ("ranked", Example([prompt], [[at + 10]], row=f"f:{at}", numbers={"score": [float(score)]}))
        for at, (prompt, score) in enumerate(rows)
    ]
    converter = Converter("ranked", DataSpec())
    got = {example.prompt[0]: example for example in converter(natives)}
    assert len(got) == len({prompt for prompt, _ in rows}) == converter.lists
    for prompt, example in got.items():
        of_prompt = [(float(score), [at + 10]) for at, (other, score) in enumerate(rows) if other == prompt]
        of_prompt.sort(key=lambda entry: -entry[0])
        assert example.numbers["score"] == [score for score, _ in of_prompt]
        assert example.responses == [response for _, response in of_prompt]
        assert example.row == f"f:{min(at for at, (other, _) in enumerate(rows) if other == prompt)}"
    assert [*Converter("ranked", DataSpec(gather=False))(natives)] == [example for _, example in natives]


def test_pairs_become_labelled_responses():
    result = made("unpaired", PAIR, {**PAIR, "prompt": "z", "margin": 2})
    assert texts(result) == ["b", "c", "b", "c"]
    assert [e.numbers["desirable"] for e in result.examples] == [[1.0], [0.0]] * 2
    assert [e.row for e in result.examples] == ["rows:1", "rows:1", "rows:2", "rows:2"]
    assert result.report.notes == ["pairs became 4 labelled responses"]
    assert result.report.summary() == "rows: 2 of 2 rows kept as 4 labelled responses"


@pytest.mark.parametrize(
    ("extra", "order", "scores"),
    [
        ({}, "bc", [1.0, 0.0]),
        ({"margin": 0.5}, "bc", [0.5, 0.0]),
        ({"score_chosen": 8, "score_rejected": 6.5}, "bc", [8.0, 6.5]),
        ({"score_chosen": 6, "score_rejected": 8}, "cb", [8.0, 6.0]),
    ],
)
def test_pairs_become_lists_of_two(extra, order, scores):
    result = made("ranked", {**PAIR, **extra})
    assert texts(result) == [order]
    assert result[0].numbers["score"] == scores
    assert result[0].margin is None


def test_ties_and_barren_lists_are_counted():
    rows = [LIST, {"prompt": "b", "responses": ["b", "c"], "scores": [1, 1]}]
    result = made("preference", *rows, pairs="adjacent")
    assert texts(result) == ["bc", "de"]
    assert result.examples.margin.tolist() == [2.0, 1.0]
    assert result.report.notes == [
        "ranked lists became 2 pairs (data.spec.pairs=adjacent)",
        "2 ties of scores left out",
        "1 groups that gave no pairs left out",
    ]
    assert result.report.summary() == "rows: 2 of 2 rows kept"  # as many pairs as rows, by chance
    nothing = made("preference", rows[1])
    with pytest.raises(DataError, match="its 1 rows give no pairs: 1 ties of scores left out"):
        nothing.report.enforce(DataSpec())


def test_lists_need_a_threshold_to_become_labels():
    with pytest.raises(DataError, match=r"set data\.spec\.threshold .* or to mean"):
        made("unpaired", LIST)
    result = made("unpaired", LIST, threshold="mean")
    assert [e.numbers["desirable"] for e in result.examples] == [[1.0], [0.0], [0.0], [0.0]]
    singles = [{"prompt": "a", "response": text, "score": score} for text, score in (("b", 1), ("c", 3))]
    assert [e.numbers["desirable"] for e in made("unpaired", *singles, threshold=2).examples] == [[0.0], [1.0]]
    assert texts(made("unpaired", *singles, threshold="mean")) == ["c", "b"]  # gathered, best first


def test_scored_rows_become_pairs_by_way_of_lists():
    rows = [{"prompt": p, "response": text, "score": score} for p, text, score in
            (("a", "b", 1), ("z", "y", 1), ("a", "c", 3), ("a", "d", 2))]  # fmt: skip
    result = made("preference", *rows, pairs="all")
    assert texts(result) == ["cd", "cb", "db"]
    assert result.report.notes[0] == "4 scored responses with a row each are 2 lists, one a prompt"
    assert result.report.notes[-1] == "1 groups that gave no pairs left out"


def test_conversions_keep_a_prompt_on_one_side_of_a_split():
    rows = [{"prompt": f"p{i % 15}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(60)]
    examples = made("unpaired", *rows).examples
    train, validation = split(examples, 0.4)
    sides = [{tuple(examples[int(i)].prompt) for i in side} for side in (train, validation)]
    assert not sides[0] & sides[1]
    assert len(train) + len(validation) == 120


def test_masks_travel_with_their_responses():
    chat = [{"role": "user", "content": "a"}]
    turns = [{"role": "assistant", "content": "b"}, *chat, {"role": "assistant", "content": "c"}]
    row = {"prompt": chat, "responses": [turns, turns[:1]], "scores": [1, 2]}
    spec = DataSpec(cache=False)
    best_first = tokenize(Rows(row), tokenizers.qwen_like(), spec, "ranked")[0]
    assert [all(mask) for mask in best_first.loss_mask] == [True, False]
    pair = tokenize(Rows(row), tokenizers.qwen_like(), spec, "preference")[0]
    assert pair.loss_mask == best_first.loss_mask
    labelled = tokenize(Rows(row), tokenizers.qwen_like(), DataSpec(cache=False, threshold=2), "unpaired")
    assert labelled[0].loss_mask is None
    assert labelled[1].loss_mask == [best_first.loss_mask[1]]
    assert pack(labelled.examples, kind="unpaired").totals.groups == 2


def test_the_account_names_every_conversion():
    report = DataReport("f", "ranked")
    converter = Converter("ranked", DataSpec())
    made_groups = list(converter([("preference", Example([1], [[1], [2]], numbers={"score": [1.0, 1.0]}))]))
    converter.account(report, len(made_groups))
    assert report.notes == ["pairs became 1 ranked list", "1 ties of scores kept"]
    assert report.groups == 1
