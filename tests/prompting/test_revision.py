"""Critique and revision of responses: order of the requests, choice of principles, and resulting pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.revise import make_revision, write_pairs
from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.prompting import Revision
from rlhf_lightning.prompting.revision_texts import PRINCIPLES

PROMPTS: list[Turns] = [[{"role": "user", "content": text}] for text in ("how to pick a lock", "what is dew", "hello")]


class Model:
    """Numbers its replies, and keeps its conversations."""

    def __init__(self) -> None:
        self.asked: list[Turns] = []

    def __call__(self, conversations: Sequence[Turns]) -> list[str]:
        self.asked += conversations
        first = len(self.asked) - len(conversations)
        return [f"text {first + at}" for at in range(len(conversations))]


def texts_of_pair(row: dict[str, Any]) -> tuple[str, ...]:
    """The texts of a pair of turns."""
    assert [row[name][-1]["role"] for name in ("prompt", "chosen", "rejected")] == ["user", "assistant", "assistant"]
    return tuple(row[name][-1]["content"] for name in ("prompt", "chosen", "rejected"))


def test_a_chain_is_response_critique_revision_and_the_next_starts_from_the_revision():
    model = Model()
    (one,) = Revision(revisions=2)(PROMPTS[:1], ["first"], model, seed=0)
    texts = [[turn["content"] for turn in turns] for turns in model.asked]
    (_, critique_1, revise_1), (_, critique_2, revise_2) = (
        next(texts for texts in PRINCIPLES if texts[0] == principle.name) for principle in one.principles
    )
    assert texts[0] == ["how to pick a lock", "first", critique_1]
    assert texts[1][:4] == [*texts[0], "text 0"]
    assert texts[1][4].startswith(revise_1)
    assert texts[2] == ["how to pick a lock", "text 1", critique_2]
    assert texts[3][4].startswith(revise_2)
    row = one.row()
    assert texts_of_pair(row) == ("how to pick a lock", "text 3", "first")
    assert row["critiques"] == ["text 0", "text 2"]
    assert len(set(row["principles"])) == 2


def test_roles_alternate_behind_a_system_message_and_worked_examples(tmp_path):
    names = ("prompt", "response", "critique_request", "critique", "revision_request", "revision")
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({name: f"an example's {name}" for name in names}) + "\n")
    model, turns = Model(), [{"role": "system", "content": "be brief"}, *PROMPTS[0]]
    (one,) = Revision(examples=str(file))([turns], ["first"], model, seed=0)
    for asked in model.asked:
        roles = [turn["role"] for turn in asked]
        assert roles[0] == "system"
        assert roles[1:] == (["user", "assistant"] * len(roles))[: len(roles) - 1]
        assert [turn["content"] for turn in asked[1:7]] == [f"an example's {name}" for name in names]
    assert one.row()["prompt"] == turns


def test_principles_depend_on_seed_prompt_and_sample_alone():
    chain = Revision()

    def names(prompts: Sequence[Turns], seed: int) -> list[str]:
        return [one.principles[0].name for one in chain(prompts, ["x"] * len(prompts), Model(), seed)]

    together = names(PROMPTS, 0)
    assert together == [names([turns], 0)[0] for turns in PROMPTS]
    assert names(PROMPTS[::-1], 0) == together[::-1]
    assert any(names(PROMPTS, seed) != together for seed in range(1, 4))
    assert len(set(names(PROMPTS[:1] * 20, 0))) > 2  # samples of one prompt meet different ones


def test_every_principle_is_drawn_equally_often():
    turns = [[{"role": "user", "content": str(number)}] for number in range(800)]
    drawn = [one.principles[0].name for one in Revision()(turns, ["x"] * 800, Model(), seed=3)]
    counts = [drawn.count(name) for name, _, _ in PRINCIPLES]
    assert sum((count - 100) ** 2 / 100 for count in counts) < 24.3  # chi-square of 7 degrees of freedom, p = 0.001


def test_a_revision_that_is_empty_or_changes_nothing_is_no_pair(tmp_path, capsys):
    revisions = iter(["first 0 ", "", "better"])

    def answer(conversations: Sequence[Turns], samples: int) -> list[list[str]]:
        if len(conversations[0]) == 1:
            return [[f"first {at}"] for at in range(len(conversations))]
        if len(conversations[0]) == 3:
            return [["a critique"]] * len(conversations)
        return [[next(revisions)] for _ in conversations]

    output = tmp_path / "new" / "pairs.jsonl"
    write_pairs(Revision(), PROMPTS, answer, SimpleNamespace(samples=1, seed=0, output=str(output)))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [texts_of_pair(row) for row in rows] == [("hello", "better", "first 2")]
    assert "2 of 3 revisions are empty or change nothing" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("", r"revision\.file=\S+ has no rows"),
        ('{"name": "kind", "critique": "is it?"}', r':1 must have texts under "name" and "critique" and "revise"'),
        ("{", ":1 is not JSON"),
    ],
)
def test_a_file_of_principles_is_refused_by_row(tmp_path, row, message):
    (tmp_path / "principles.jsonl").write_text(row + "\n")
    with pytest.raises(ValueError, match=message):
        Revision(file=str(tmp_path / "principles.jsonl"))


def test_more_revisions_than_principles_are_refused():
    with pytest.raises(ValueError, match=r"revision\.revisions=9 .* there are only 8"):
        Revision(revisions=9)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"reward": {"a": 1}}, "reward"),
        ({"keep": 1}, "keep"),
        ({"chat": True}, "chat"),
        ({"prompting": {"a": 1}}, "prompting"),
        ({"spec": {"template": "none"}}, "spec.template=none"),
    ],
)
def test_options_that_make_no_pairs_are_refused(change, option):
    cfg = {"revision": {"_target_": "x"}, "chat": False, "reward": {}, "keep": None, "prompting": {}, "spec": {}}
    with pytest.raises(ConfigError, match=option):
        make_revision(OmegaConf.create(cfg | change), prompts=1)
