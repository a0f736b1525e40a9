"""A language model's task: prompts with a text in them, greedy responses, scores by any reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlhf_lightning.data.checks import DataError
from rlhf_lightning.data.encode import Encoder
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.templates import resolve
from rlhf_lightning.prompting.language import LanguageTask, optimizer_of, queries_of
from rlhf_lightning.prompting.search import Trial
from rlhf_lightning.rewards import as_reward
from rlhf_lightning.types import Sample
from tests.helpers.rows import Rows
from tests.helpers.tokenizers import END, qwen_like

TOKENIZER = qwen_like()
ROWS = ({"prompt": [{"role": "user", "content": "1 + 1?"}], "answer": 2}, {"prompt": "2 + 2?", "answer": 4})


def right(prompt: str, response: str, answer: int = 0, **columns: object) -> float | None:
    return None if answer == 4 else float(str(answer) in response)


def task(seen: list[str], position: Any = "Q_end") -> LanguageTask:
    def respond(prompts: Sequence[Sequence[int]]) -> list[Sample]:
        seen.extend(str(TOKENIZER.decode(ids)) for ids in prompts)
        return [Sample([*TOKENIZER("It is 2.")["input_ids"], END], [], "stop") for _ in prompts]

    template = resolve(TOKENIZER, DataSpec())
    encoder = Encoder(TOKENIZER, DataSpec(), template)
    queries = queries_of(Rows(*ROWS), DataSpec())
    return LanguageTask(queries, respond, as_reward(right, TOKENIZER), encoder, template, position)


def test_a_text_is_tried_in_its_place_and_scored_with_the_rows_columns():
    seen: list[str] = []
    assert task(seen).trials("Think.", [1, 0]) == [Trial(None, "It is 2."), Trial(1.0, "It is 2.")]
    start = "<|im_start|>user\n"
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert seen == [f"{start}2 + 2?\nThink.{end}", f"{start}1 + 1?\nThink.{end}"]


def test_a_response_is_begun():
    seen: list[str] = []
    task(seen, "A_begin").trials("Think.", [0])
    assert seen == ["<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\nThink."]


def test_what_the_optimiser_sees():
    assert task([]).shown(0, "<INS>") == ("1 + 1?\n<INS>", "2")
    assert task([], "before_Q").shown(1, "<INS>") == ("system: <INS>\n2 + 2?", "4")


def test_rows_without_a_prompt_are_named():
    with pytest.raises(DataError, match="rows:1"):
        queries_of(Rows({"question": "?"}), DataSpec())


def test_each_proposal_has_a_seed_of_its_own():
    seeds: list[int] = []

    class Proposer:
        def ask_each(self, conversations: Sequence[Any], **options: Any) -> list[str | None]:
            seeds.append(options["seed"])
            return [None if len(seeds) == 2 else f"text {len(seeds)}"]

    assert optimizer_of(Proposer(), 1.0, 8)("question", 3, 5) == ["text 1", "text 3"]
    assert len(set(seeds)) == 3
