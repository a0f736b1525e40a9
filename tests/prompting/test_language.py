"""A language model's task: prompts with a text in them, greedy responses, scores by any reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.optimize_prompt import _check_same
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.encode import Encoder
from rlhf_lightning.data.tokens.templates import resolve
from rlhf_lightning.prompting.language import LanguageTask, Temperature, optimizer_of, queries_of
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


def test_a_text_is_tried_at_its_position_and_scored_with_the_rows_columns():
    seen: list[str] = []
    assert task(seen).trials("Think.", [1, 0]) == [Trial(None, "It is 2."), Trial(1.0, "It is 2.")]
    start = "<|im_start|>user\n"
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert seen == [f"{start}2 + 2?\nThink.{end}", f"{start}1 + 1?\nThink.{end}"]


def test_a_response_is_begun():
    seen: list[str] = []
    task(seen, "A_begin").trials("Think.", [0])
    assert seen == ["<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\nThink."]


def test_examples_shown_to_the_optimiser():
    assert task([]).shown(0, "<INS>") == ("1 + 1?\n<INS>", "2")
    assert task([], "before_Q").shown(1, "<INS>") == ("system: <INS>\n2 + 2?", "4")


def test_rows_without_a_prompt_are_named():
    with pytest.raises(DataError, match="rows:1"):
        queries_of(Rows({"question": "?"}), DataSpec())


def test_each_proposal_has_its_own_seed():
    seeds: list[int] = []

    class Proposer:
        def ask_each(self, conversations: Sequence[Any], **options: Any) -> list[str | None]:
            seeds.append(options["seed"])
            return [None if len(seeds) == 2 else f"text {len(seeds)}"]

    assert optimizer_of(Proposer(), 1.0, 8)("question", 3, 5) == ["text 1", "text 3"]
    assert len(set(seeds)) == 3


def test_the_temperature_of_proposals_changes_linearly():
    """google-deepmind/opro, ``linear_increase``: start + i / n (end - start) in step i of n, counted from 0."""
    asked = []

    class Proposer:
        def ask_each(self, conversations, *, max_tokens, temperature, seed):
            asked.append(temperature)
            return ["text"]

    optimizer = optimizer_of(Proposer(), Temperature(0.5, 1.5, 4), 8)
    for step in (1, 2, 3, 4):
        optimizer("question", 1, 0, step)
    assert asked == [0.5, 0.75, 1.0, 1.25]


@pytest.mark.parametrize(("end", "refused"), [(None, False), (1.5, True)])
def test_more_steps_resume_a_search_whose_temperature_does_not_depend_on_them(tmp_path, end, refused):
    before = OmegaConf.create({"search": {"steps": 2}, "proposal_temperature_end": end})
    OmegaConf.save(before, tmp_path / "config.yaml")
    (tmp_path / "search.jsonl").write_text("{}\n")
    now = OmegaConf.create({"search": {"steps": 3}, "proposal_temperature_end": end})
    if not refused:
        _check_same(now, tmp_path)
        return
    with pytest.raises(ConfigError, match=r"holds another search \(search\.steps: 2 -> 3\)"):
        _check_same(now, tmp_path)
