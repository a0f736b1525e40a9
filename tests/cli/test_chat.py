"""A chat: streaming, stopping, and its commands, with models that repeat what they are asked."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_lightning.cli.chat import Chat, Stream
from rlhf_lightning.cli.errors import ConfigError


class Parrot:
    """Repeats the last turn in capitals, a character a token; stopped by Ctrl-C before token ``stop``."""

    def __init__(self, run: str | None = None, stop: int | None = None) -> None:
        self.cfg = SimpleNamespace(system=None, run=run, temperature=1.0, get={}.get)
        self.stop, self.asked = stop, []

    def text(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def respond(self, conversation: list[dict[str, Any]], processor: Stream) -> str:
        self.asked.append([dict(turn) for turn in conversation])
        prompt, ids = [1, 2, 3], [ord(letter) for letter in conversation[-1]["content"].upper()]
        for count in range(len(ids)):
            if count == self.stop:
                raise KeyboardInterrupt
            processor(torch.tensor([[*prompt, *ids[:count]]]), torch.zeros(1, 4))
        return self.text(ids)


@pytest.fixture
def shown():
    return []


def talk(model: Parrot, shown: list[str], *lines: str, **runs: Parrot) -> Chat:
    chat = Chat(model, lambda folder: runs[folder], shown.append)
    for line in lines:
        assert chat.read(line)
    return chat


def test_a_response_appears_as_it_is_drawn(shown):
    talk(Parrot(), shown, "abc")
    assert [part for part in shown if part] == ["A", "B", "C\n"]


def test_ctrl_c_stops_the_response_and_not_the_chat(shown, capsys):
    model = Parrot(stop=3)
    chat = talk(model, shown, "abcdef", "xy")
    assert "".join(shown) == "ABXY\n"
    assert "stopped" in capsys.readouterr().err
    assert [turn["content"] for turn in chat.turns] == ["abcdef", "AB", "xy", "XY"]


def test_a_character_of_several_tokens_waits_for_its_rest():
    shown: list[str] = []
    texts = {0: "", 1: "a", 2: "a\N{REPLACEMENT CHARACTER}", 3: "aé"}
    stream = Stream(lambda ids: texts[len(ids)], shown.append)
    logits = torch.zeros(1, 4)
    for count in range(4):
        assert stream(torch.ones(1, 5 + count, dtype=torch.long), logits) is logits
    assert shown == ["", "a", "é"]


def test_a_text_that_is_rewritten_is_shown_whole(shown):
    class Tidy(Parrot):
        def respond(self, conversation: Any, processor: Stream) -> str:
            return super().respond(conversation, processor).replace("A", "E")

    talk(Tidy(), shown, "abc")
    assert "".join(shown) == "AB\nEBC\n"


def test_blocks_that_may_be_taken_back_are_not_shown_before_the_end(shown):
    model = Parrot()
    model.cfg.get = {"guidance": {"_target_": "blocks"}}.get
    talk(model, shown, "abc")
    assert shown == ["ABC\n"]


def test_new_and_system_start_over(shown):
    model = Parrot()
    chat = talk(model, shown, "one", "two", "/new", "three", "/system Be kind.", "four", "/system", "five")
    assert [len(turns) for turns in model.asked] == [1, 3, 1, 2, 1]
    assert model.asked[3][0] == {"role": "system", "content": "Be kind."}
    assert chat.system is None


def test_two_runs_respond_to_the_same_turns(shown, capsys):
    first, second = Parrot(run="runs/a"), Parrot(run="runs/b")
    chat = talk(first, shown, "/compare runs/b", "hi", "ho", **{"runs/b": second})
    assert capsys.readouterr().out.split() == ["runs/a", "runs/b"] * 2
    assert first.asked == second.asked
    assert chat.read("/compare")
    assert chat.read("alone")
    assert len(second.asked) == 2


def test_a_run_that_cannot_be_read_is_reported_and_the_chat_continues(shown, capsys):
    def refuse(folder: str) -> Parrot:
        raise ConfigError(f"run={folder} is not the folder of a run")

    chat = Chat(Parrot(), refuse, shown.append)
    assert chat.read("/compare nowhere")
    assert "run=nowhere is not the folder of a run" in capsys.readouterr().err
    assert chat.read("hi")
    assert shown[-1].endswith("\n")


@pytest.mark.parametrize(("line", "value"), [("/temperature 0", 0.0), ("/temperature 0.5", 0.5)])
def test_temperature(shown, line, value):
    model = Parrot()
    talk(model, shown, line)
    assert model.cfg.temperature == value


@pytest.mark.parametrize("line", ["/temperature", "/temperature warm", "/temperature -1", "/temperature nan", "/save"])
def test_a_command_that_lacks_something_changes_nothing(shown, capsys, line):
    model = Parrot()
    talk(model, shown, line)
    assert capsys.readouterr().err.startswith(line)
    assert model.cfg.temperature == 1.0


def test_a_saved_conversation_is_a_row_of_data(shown, tmp_path):
    file = tmp_path / "talk.jsonl"
    talk(Parrot(), shown, "/system Be kind.", "hi", f"/save {file}", "ho", f"/save {file}")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [len(row["messages"]) for row in rows] == [3, 5]


def test_other_commands(shown, capsys):
    chat = talk(Parrot(), shown, "/help", "/sav")
    captured = capsys.readouterr()
    assert "/compare RUN" in captured.out
    assert "there is no command /sav. Did you mean save?" in captured.err
    assert not chat.read("/quit")
    assert not shown
