"""Jobs of a game: stages in turn, each with the newest folders of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning.rounds.game import Game, latest

STAGES = {
    "scorer": ["method=a", "data.source.path={policy}/rows", "x={round}"],
    "policy": ["method=b", "ckpt_path={policy}/last", "reward.path={scorer}/export", "draws=[{source: policy, n: 2}]"],
}


def test_stages_alternate_on_what_the_others_left():
    """An option that names a stage which was not played is left out; a stage sees those of its own round first."""
    moves = list(Game(Path("g"), 2, STAGES).moves())
    assert [(move.round, move.stage, str(move.folder)) for move in moves] == [
        (1, "scorer", "g/round_1/scorer"),
        (1, "policy", "g/round_1/policy"),
        (2, "scorer", "g/round_2/scorer"),
        (2, "policy", "g/round_2/policy"),
    ]
    draws = "draws=[{source: policy, n: 2}]"
    assert [move.options for move in moves] == [
        ("method=a", "x=1"),
        ("method=b", "reward.path=g/round_1/scorer/export", draws),
        ("method=a", "data.source.path=g/round_1/policy/rows", "x=2"),
        ("method=b", "ckpt_path=g/round_1/policy/last", "reward.path=g/round_2/scorer/export", draws),
    ]


def test_a_longer_game_begins_with_the_same_moves():
    shorter, longer = (list(Game(Path("g"), rounds, STAGES).moves()) for rounds in (2, 3))
    assert longer[: len(shorter)] == shorter


def test_the_last_option_of_a_key_counts():
    assert latest(["a=1", "b=2", "+a=3", "~b", "c.d={x: 1}"]) == ["+a=3", "~b", "c.d={x: 1}"]


@pytest.mark.parametrize(
    ("rounds", "stages", "message"),
    [
        (0, STAGES, r"game\.rounds=0 must be at least 1"),
        (1, {}, r"game\.stages is empty"),
        (1, {"a": ["x={b}/y"]}, r"game\.stages\.a: x=\{b\}/y names the stage b, and there are a"),
        (1, {"round": ["x=1"]}, r"game\.stages\.round: a stage's name is a word in small letters, and not round"),
        (1, {"a": ["method"]}, r"game\.stages\.a: 'method' is no option"),
    ],
)
def test_refused(rounds, stages, message):
    with pytest.raises(ValueError, match=message):
        Game(Path("g"), rounds, stages)
