"""Responses under opposite instructions: what pairs, demonstrations and labelled responses become."""

from __future__ import annotations

import pytest

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.types import Example
from tests.helpers import tokenizers
from tests.helpers.rows import Rows
from tests.helpers.tokenizers import BOS, EOS

PAIR = {"prompt": "q", "chosen": "b", "rejected": "cc"}
CONTEXTS = {"positive_context": "P", "negative_context": "N"}


def examples(*rows: dict, style: str = "llama", **options: object) -> list[Example]:
    spec = DataSpec(cache=False, max_left_out=1, **{**CONTEXTS, **options})
    made = tokenize(Rows(*rows), tokenizers.STYLES[style](), spec, "instruction")
    made.report.enforce(spec)
    return [made.examples[number] for number in range(len(made.examples))]


def ids(text: str) -> list[int]:
    return [BOS, *text.encode()]


def group(response: str, desirable: float, *prompts: str) -> Example:
    first, *more = map(ids, prompts)
    made = [[*response.encode(), EOS]] * 3
    numbers = {"desirable": [desirable] * 3}
    return Example(first, made, row="rows:1", more_prompts=tuple(more), numbers=numbers)


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        (PAIR, {}, [("b", 1.0, "P\n\nq", "N\n\nq", "q"), ("cc", 0.0, "P\n\nq", "N\n\nq", "q")]),
        (PAIR, {"context_position": "behind"}, [("b", 1.0, "qP", "qN", "q"), ("cc", 0.0, "qP", "qN", "q")]),
        ({"prompt": "q", "response": "b"}, {}, [("b", 1.0, "P\n\nq", "N\n\nq", "q")]),
        ({"prompt": "q", "response": "b", "label": False}, {}, [("b", 0.0, "P\n\nq", "N\n\nq", "q")]),
    ],
    ids=["pair", "behind", "demonstration", "bad response"],
)
def test_rows_become_one_response_in_three_contexts(row: dict, options: dict, expected: list) -> None:
    assert examples(row, **options) == [group(*each) for each in expected]


def test_a_conversation_gets_its_context_as_the_system_message() -> None:
    (made, _) = examples(
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": [{"role": "assistant", "content": "c"}],
        },
        style="qwen",
    )
    texts = [tokenizers.STYLES["qwen"]().decode(prompt) for prompt in (made.prompt, *made.more_prompts)]
    assert ["P" in texts[0], "N" in texts[1], "P" in texts[2] or "N" in texts[2]] == [True, True, False]
    assert all("system" in text for text in texts[:2])


def test_a_cut_response_is_cut_alike_in_every_context() -> None:
    long = {"prompt": "q", "chosen": "b" * 20, "rejected": "c"}
    good, bad = examples(long, max_length=16, too_long="keep_start", positive_context="PPPP")
    assert len({tuple(response) for response in good.responses}) == 1
    assert len(good.responses[0]) < 20
    assert bad.responses == [[*b"c", EOS]] * 3


def test_batches_say_which_instruction_a_response_obeys() -> None:
    batch = pack(examples(PAIR, {"prompt": "r", "response": "d"}), kind="instruction")
    assert batch.desirable.tolist() == [1.0] * 3 + [0.0] * 3 + [1.0] * 3
    assert (batch.slots, len(batch)) == (3, 3)


def test_equal_instructions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.spec.positive_context and data.spec.negative_context are the same"):
        DataSpec(positive_context="x", negative_context="x")


def test_prompts_alone_are_refused() -> None:
    with pytest.raises(DataError, match="no format fits the columns prompt"):
        examples({"prompt": "q"})
