"""``rlhf game``: two jobs in turn from the command line, stopped and resumed, and what is refused before them."""

from __future__ import annotations

import json

import pytest

from rlhf_lightning.cli import stages

STAGES = """game.stages={first: ["method=sft"], second: ["method=sft", "ckpt_path={first}/checkpoints/last.ckpt"]}"""


@pytest.fixture
def played(rlhf, tiny, monkeypatch):
    """Play a game of two stages; the stages that were begun, in order. One of them may be made to fail."""
    begun: list[str] = []
    launch = stages.launch

    def play(*options: str, failing: str | None = None):
        def start(arguments):
            (folder,) = [argument for argument in arguments if argument.startswith("paths.output_dir=")]
            begun.append("/".join(folder.strip('"').split("/")[-2:]))
            return 1 if begun[-1] == failing else launch(arguments)

        monkeypatch.setattr(stages, "launch", start)
        begun.clear()
        common = ["optimizer.lr=1e-2", "paths.output_dir=g"]
        code, out, err = rlhf("game", STAGES, *tiny, *common, *options)
        return code, list(begun), " ".join((out + err).split())

    return play


def test_a_game_is_resumed_and_made_longer(played, tmp_path):
    """Finished jobs are not run again; a later stage starts from the weights of an earlier one."""
    code, begun, err = played(failing="round_1/second")
    assert (code, begun) == (1, ["round_1/first", "round_1/second"]), err
    assert "the game ended in round 1, stage second" in err
    code, begun, err = played()
    assert (code, begun) == (0, ["round_1/second"]), err
    assert "round 1, stage first was done before" in err
    first, second = (
        json.loads((tmp_path / "g/round_1" / name / "job.json").read_text()) for name in ("first", "second")
    )
    assert "ckpt_path" in second["content"]
    assert "ckpt_path" not in first["content"]
    assert first["method"] == second["method"] == "sft"
    assert played() == (0, [], played()[2])
    code, begun, err = played("second.optimizer.lr=2e-2", "game.rounds=2")
    assert (code, begun) == (2, [])
    assert "round 1, stage second" in err
    assert "optimizer.lr: 0.01 -> 0.02" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["second.optimizer.lrr=1"], r"round 1, stage second: optimizer.lrr: AdamW has no option 'lrr'"),
        (["game.round=1"], r"game.round: game has no option 'round'"),
        (["game.rounds=0"], r"game.rounds"),
        (["-m"], r"rlhf game has no flag -m"),
    ],
)
def test_refused_before_the_first_job(played, options, message):
    code, begun, err = played(*options)
    assert (code, begun) == (2, [])
    assert message in err


@pytest.mark.parametrize("option", ["allow_targets=[os]", "hydra.run.dir=x", "rollout.environment={A: b}"])
def test_a_yaml_cannot_speak_for_the_command_line(rlhf, tmp_path, option):
    """Options of a stage reach its job as if the user had typed them."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = f"# @package _global_\ngame: {{stages: {{a: ['method=dpo', '{option}']}}}}\n"
    (tmp_path / "conf" / "experiment" / "other.yaml").write_text(text)
    code, _, err = rlhf("game", "--config-dir", str(tmp_path / "conf"), "experiment=other", "paths.output_dir=g")
    assert code == 2
    assert "game.stages.a" in err
    assert "counts only on the command line" in err


def test_a_game_is_no_job(rlhf):
    code, _, err = rlhf("train", "experiment=apo_tiny")
    assert code == 2
    assert "rlhf game experiment=" in err
