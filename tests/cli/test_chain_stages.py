"""Stages of a chain: their order, what they take from one another, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlhf_lightning.cli.chain import chain_of
from rlhf_lightning.cli.chain_stages import COMMANDS, DRAWING, Stage, check_left, ordered, references
from rlhf_lightning.cli.errors import ConfigError


def stages(**lines: list[str]) -> list[Stage]:
    return [Stage.of(name, options) for name, options in lines.items()]


def test_a_stage_runs_behind_those_that_it_takes_from():
    """Otherwise the order of the yaml stays."""
    chain = stages(
        ppo=["model.run=${stage:sft}", "reward.run=${stage:reward}"],
        sft=["method=sft"],
        other=["method=dpo"],
        reward=["model.run=${stage:sft}"],
    )
    assert [stage.name for stage in ordered(chain)] == ["sft", "reward", "ppo", "other"]


def test_references_are_filled_where_they_stand():
    stage = Stage.of("a", ["evaluate", "x={p: '${stage:b.export}', q: ${stage:b.metrics.val/loss}}", "y=${seed}"])
    assert stage.command == "evaluate"
    assert [(one.stage, one.output, one.metric) for one in stage.references] == [
        ("b", "export", None),
        ("b", "metrics.val/loss", "val/loss"),
    ]
    filled = stage.filled(lambda one: "0.5" if one.metric else str(one.path(Path("c/b"))))
    assert filled == ("x={p: 'c/b/export/last', q: 0.5}", "y=${seed}")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"a": ["x=${stage:b}"]}, r"chain\.stages\.a: x=\$\{stage:b\} refers to a stage 'b', which the chain does not"),
        ({"sft": ["x=1"], "dpo": ["x=${stage:sfft}"]}, r"Did you mean sft\?"),
        ({"a": ["x=${stage:b}"], "b": ["x=${stage:c}"], "c": ["x=${stage:a}"]}, r"a needs itself: a -> b -> c -> a"),
        ({"a": ["x=${stage:a.export}"]}, r"chain\.stages\.a needs itself: a -> a"),
        ({"a": ["x=1"], "b": ["x=${stage:a.exprt}"]}, r"a stage leaves no 'exprt'\. Did you mean export\?"),
    ],
)
def test_refused_graphs(lines, message):
    with pytest.raises(ConfigError, match=message):
        ordered(stages(**lines))


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("A", ["x=1"], r"chain\.stages\.A: a stage's name is a word in small letters"),
        ("size", ["x=1"], r"chain\.stages\.size: a stage's name"),
        ("a", ["trian", "x=1"], r"no command 'trian' for a stage\. Did you mean train\?"),
        ("a", ["x=1", "method"], r"'method' is no option"),
        ("a", ["x=${stage:B}"], r"x=\$\{stage:B\} refers to a stage as \$\{stage:name\} cannot be read"),
    ],
)
def test_refused_stages(name, lines, message):
    with pytest.raises(ConfigError, match=message):
        Stage.of(name, lines)


EXPORT = {"_target_": "rlhf_lightning.callbacks.HFExport", "last": True, "monitor": None}
LAST = {"_target_": "rlhf_lightning.callbacks.LastCheckpoint"}


@pytest.mark.parametrize(
    ("option", "callbacks", "missing"),
    [
        ("model.run=${stage:a}", {"export": EXPORT}, None),
        ("model.run=${stage:a}", {"last": LAST}, "export"),
        ("model.run=${stage:a}", {"export": {**EXPORT, "last": False}}, "export"),
        ("model.run=${stage:a}", {"export": None}, "export"),
        ("run=${stage:a}", {"export": EXPORT}, "checkpoint"),
        ("run=${stage:a}", {"last": LAST}, None),
        ("reward.path=${stage:a.export}", {"last": LAST}, "export"),
        ("reward.path=${stage:a.best}", {"export": EXPORT}, "best"),
        ("data.source.path=${stage:a.groups}", {"last": LAST}, "groups"),
        ("x=${stage:a.metrics.val/loss}", {}, None),
        ("x=${stage:a}/rollouts", {}, None),
    ],
)
def test_what_a_stage_will_not_leave_is_refused_before_it_runs(option, callbacks, missing):
    (reference,) = references(option)
    cfg = OmegaConf.create({"callbacks": callbacks, "rounds": None})
    if missing is None:
        check_left(reference, Stage.of("a", ["x=1"]), cfg)
        return
    with pytest.raises(ConfigError, match=rf"stage a leaves no {missing}: "):
        check_left(reference, Stage.of("a", ["x=1"]), cfg)


@pytest.mark.parametrize("command", ["steer", "game", "export"])
def test_only_jobs_with_metrics_give_metrics(command):
    (reference,) = references("x=${stage:a.metrics.val/loss}")
    with pytest.raises(ConfigError, match=f"stage a is rlhf {command}, which has no metrics"):
        check_left(reference, Stage.of("a", [command, "x=1"]), OmegaConf.create({}))


@pytest.mark.parametrize(
    ("option", "command", "missing"),
    [
        ("prompting.file=${stage:a.prompt}", "optimize_prompt", None),
        ("prompting.file=${stage:a.prompt}", "generate", "prompt: only a stage of optimize_prompt writes it"),
        ("model.steering.path=${stage:a.vectors}", "steer", None),
        ("model.steering.path=${stage:a.vectors}", "train", "vectors: only a stage of steer writes them"),
        ("x=${stage:a.metrics.best/held_out}", "optimize_prompt", None),
    ],
)
def test_what_a_search_and_a_build_of_vectors_leave(option, command, missing):
    (reference,) = references(option)
    stage, cfg = Stage.of("a", [command, "x=1"]), OmegaConf.create({"callbacks": {}, "rounds": None})
    if missing is None:
        check_left(reference, stage, cfg)
        return
    with pytest.raises(ConfigError, match=f"stage a leaves no {missing}"):
        check_left(reference, stage, cfg)


def chained(shared: object, *options: str) -> dict[str, tuple[str, ...]]:
    """Options of each stage of a chain with one stage of every command."""
    lines = {name: [name] for name in COMMANDS}
    cfg = OmegaConf.create({"size": "published", "chain": {"shared": shared, "stages": lines, "sizes": {}}})
    return {stage.command: stage.options for stage in chain_of(cfg, options)}


def test_options_of_every_stage_of_a_command():
    assert {name for name, given in chained(["a=1"]).items() if given} == {"train"}
    by_command = chained({"generate": ["b=2"], "steer": ["c=3"]})
    assert {name: given for name, given in by_command.items() if given} == {"generate": ("b=2",), "steer": ("c=3",)}
    with pytest.raises(
        ConfigError, match=r"chain\.shared\.generat: no stage is of such a command\. Did you mean gener"
    ):
        chained({"generat": ["b=2"]})


def test_a_seed_of_the_command_line_is_for_all_that_draw():
    given = chained(None, "seed=3", "optimizer.lr=1")
    assert {name for name, options in given.items() if "seed=3" in options} == set(DRAWING)
    assert [name for name, options in given.items() if "optimizer.lr=1" in options] == ["train"]
