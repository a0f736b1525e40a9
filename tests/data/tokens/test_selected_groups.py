"""Selected samples as groups: the tokens that were drawn, in memory and through a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.data.tokens.selected_groups import examples_of, leave_out_equal, rows_of, same_as
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.types import DATA, NONE, Example, Sample, SampleGroup, Selected
from tests.helpers import tokenizers
from tests.helpers.rows import Rows
from tests.helpers.tokenizers import EOS, HI

TOKENIZER = tokenizers.gpt2_like()


def sample(ids: list[int]) -> Sample:
    return Sample(ids, [], "stop" if ids[-1] == EOS else "length")


#: "h" and "i" apart where the tokenizer would merge them, a cut-off response, and one that ends with a line break.
GROUPS = [
    SampleGroup([97, 104, 105], [sample([104, 105, EOS]), sample([HI, EOS]), sample([98, 46, 10])], row="p.jsonl:1"),
    SampleGroup([99], [sample([100, EOS]), sample([100, EOS]), sample([101, EOS])], row="p.jsonl:2", index=1),
]


def data_group(group: SampleGroup) -> Example:
    """The data's response, whose first token is not scored."""
    return Example(group.prompt, [[65, 66 + group.index, EOS]], [[False, True, True]])


def selected(prompt: list[int], slots: list[list[int]], **numbers: Any) -> Selected:
    tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in numbers.items()}
    return Selected(torch.tensor(prompt), torch.tensor(slots), tensors)


CASES = {
    "preference": selected([0, 0, 1], [[1, 0], [DATA, 2], [2, 0]], margin=[0.1, 2.0, 1 / 3]),
    "supervised": selected([0, 1, 1], [[0], [2], [DATA]]),
    "unpaired": selected([0, 0, 1], [[1], [2], [0]], desirable=[[1.0], [0.0], [1.0]]),
    "ranked": selected([0, 1], [[1, 2, 0], [2, 0, NONE]], score=[[3.0, 0.5, -1.0], [1.0, 0.7, 0.0]]),
}
#: A loss may ask for further numbers, which are in the file too.
SOFT = selected([0, 1], [[1, 0], [2, 1]], win_probability=[[0.8, 0.2], [0.65, 0.3]])


def through_file(folder: Path, kind: str, chosen: Selected) -> Examples:
    file = folder / "round.jsonl"
    rows = rows_of(GROUPS, chosen, kind, TOKENIZER.decode, data_group)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = tokenize(Files(str(file)), TOKENIZER, DataSpec(cache=False), kind)
    made.report.enforce(DataSpec())
    return made.examples


@pytest.mark.parametrize(("kind", "chosen"), [*CASES.items(), ("preference", SOFT)])
def test_a_file_of_the_round_trains_as_the_round(kind: str, chosen: Selected, tmp_path: Path) -> None:
    direct = examples_of(GROUPS, chosen, kind, data_group)
    assert direct.content() == through_file(tmp_path, kind, chosen).content()
    assert len(direct) == len(chosen)


def test_tokens_are_the_ones_that_were_drawn() -> None:
    """No EOS behind the cut-off response, no merge of what was drawn apart, the data's mask kept."""
    pairs = examples_of(GROUPS, CASES["preference"], "preference", data_group)
    assert [pairs[at].responses for at in range(3)] == [
        [[HI, EOS], [104, 105, EOS]],
        [[65, 66, EOS], [98, 46, 10]],
        [[101, EOS], [100, EOS]],
    ]
    assert [pairs[at].prompt for at in range(3)] == [[97, 104, 105], [97, 104, 105], [99]]
    assert pairs[1].loss_mask == [[False, True, True], [True, True, True]]
    assert pairs.margin is not None
    assert pairs.margin.tolist() == pytest.approx([0.1, 2.0, 1 / 3])
    assert pairs.row(2) == "p.jsonl:2"
    soft = examples_of(GROUPS, SOFT, "preference")
    assert soft.numbers["win_probability"].tolist() == [pytest.approx([0.8, 0.2]), pytest.approx([0.65, 0.3])]
    lists = examples_of(GROUPS, CASES["ranked"], "ranked")
    assert lists.slot_tokens.tolist() == [[2, 3, 3], [2, 2, 0]]
    weighed = examples_of(GROUPS, selected([1], [[1, 0]], weight=[2.0]), "preference")
    assert weighed.numbers["weight"].tolist() == [[2, 2]]


def test_rows_say_where_their_responses_are_from() -> None:
    first, second, _ = rows_of(GROUPS, CASES["preference"], "preference", TOKENIZER.decode, data_group)
    assert (first["from"], first["position"], first["samples"]) == ("p.jsonl:1", 0, [1, 0])
    assert second["samples"] == [None, 2]
    assert (first["prompt"], second["rejected"]) == ("ahi", "b.\n")


def test_groups_that_no_method_could_learn_from() -> None:
    with pytest.raises(ValueError, match="makes groups of 1, and pairs have 2"):
        examples_of(GROUPS, CASES["supervised"], "preference")
    with pytest.raises(ValueError, match=r"need \['desirable'\] of each response"):
        examples_of(GROUPS, CASES["supervised"], "unpaired")
    with pytest.raises(ValueError, match="but they were not read"):
        examples_of(GROUPS, CASES["preference"], "preference")
    with pytest.raises(ValueError, match="left slot 0 empty"):
        examples_of(GROUPS, selected([0], [[NONE, 1]], score=[[0.0, 1.0]]), "ranked")


def test_equal_responses_are_left_out_and_counted() -> None:
    pairs = selected([0, 1, 1], [[0, 1], [0, 1], [2, 1]], margin=[1.0, 2.0, 3.0])
    equal = same_as([[tuple(ids) for ids in group.responses] for group in GROUPS], [None, (65, 67, EOS)])
    kept = leave_out_equal(pairs, equal)
    assert kept.slots.tolist() == [[0, 1], [2, 1]]
    assert kept.numbers["margin"].tolist() == [1, 3]
    assert kept.metrics == {"equal_responses": 1}
    assert leave_out_equal(selected([0], [[DATA, 0]]), equal).metrics == {"equal_responses": 0}
    none = leave_out_equal(selected([1], [[0, 1]]), equal)
    assert (len(none), none.slots.shape) == (0, (0, 2))


def test_which_texts_are_the_same() -> None:
    made = same_as([["a", "b", "a"], ["c", "c", "d"]], ["b", None])
    assert made.tolist() == [[0, DATA, 0], [0, 0, 2]]
    assert same_as([], []).shape == (0, 0)


GOOD: dict[str, Any] = {"kind": "preference", "prompt_ids": [97], "response_ids": [[98, EOS], [99, EOS]]}


def problems(rows: list[dict[str, Any]], kind: str = "preference", **options: Any) -> tuple[int, Iterator[str]]:
    made = tokenize(Rows(*rows), TOKENIZER, DataSpec(cache=False, **options), kind)
    return len(made), (problem.message for problem in made.report.problems)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt_ids": []}, "'prompt_ids' must be a list of token ids"),
        ({"prompt_ids": "ab"}, "'prompt_ids' must be a list of token ids"),
        ({"prompt_ids": [1.0]}, "'prompt_ids' must be a list of token ids"),
        ({"prompt_ids": [True]}, "'prompt_ids' must be a list of token ids"),
        ({"response_ids": [[98, 2**31], [99]]}, r"'response_ids\[0\]' must be a list of token ids"),
        ({"response_ids": [[98], [-1]]}, r"'response_ids\[1\]' must be a list of token ids"),
        ({"response_ids": "ab"}, "'response_ids' must be a list of lists"),
        ({"response_ids": [[98, EOS], [98, EOS]]}, "both have the same 2 tokens"),
        ({"scored": [[True, True], [True]]}, "'scored' must be true or false for every token"),
        ({"scored": [None]}, "'scored' must be true or false for every token"),
        ({"scored": [[False, False], None]}, "without a scored token"),
        ({"numbers": [1.0]}, "'numbers' must be an object of lists"),
        ({"numbers": {"score": [1.0]}}, "it has .*score.* where|1 numbers 'score' for 2 responses"),
        ({"margin": "high"}, "'margin' must be a number"),
    ],
)
def test_a_broken_row_is_a_problem_of_its_own(changed: dict[str, Any], message: str) -> None:
    kept, messages = problems([GOOD, {**GOOD, "prompt_ids": [100], **changed}])
    assert kept == 1
    (only,) = messages
    assert re.search(message, only)


def test_rows_of_another_kind_are_read_as_text() -> None:
    row = {**GOOD, "prompt": "a", "chosen": "bb", "rejected": "c"}
    kept, _ = problems([row], kind="supervised")
    assert kept == 1


def test_limits_count_as_for_every_row() -> None:
    kept, messages = problems([GOOD], max_length=2, too_long="keep_end")
    assert kept == 1
    assert "tokens cut to" in next(messages)
