"""Pooling of runs, labels of groups, and differences between groups."""

from __future__ import annotations

import json

import pytest
import yaml

from rlhf_lightning.report.grouping import (
    by_numeric_key,
    copies_of_the_seed,
    differing,
    distinguishing_keys,
    flat,
    group_runs,
    labels_of,
    plain,
    short_names,
    signature,
)
from rlhf_lightning.report.reading import Run, read_run, read_runs, resolved
from tests.helpers.synthetic_runs import config, write_run, write_sweep


def labels(root):
    return [group.label for group in group_runs(read_runs([root]))]


def test_seeds_are_pooled_and_nothing_else(tmp_path):
    """Folders, and copies of the seed in callbacks, differ between seeds too; the model's own seed is not one."""
    for seed in (3, 1, 2):
        write_run(tmp_path / f"s{seed}", seed=seed)
    (group,) = group_runs(read_runs([tmp_path]))
    assert [run.seed for run in group.runs] == [1, 2, 3]
    other = config("dpo", 1, tmp_path / "s4")
    other["model"]["seed"] = 1
    write_run(tmp_path / "s4")
    (tmp_path / "s4" / "config.yaml").write_text(yaml.safe_dump(other))
    assert labels(tmp_path) == ["dpo seed=0", "dpo seed=1"]


def test_a_copied_seed_is_left_out_only_where_it_equals_the_seed(tmp_path):
    settings = config("dpo", 7, tmp_path)
    settings["data"] |= {"cuts": {"seed": 9}, "log": f"{tmp_path}/log"}
    kept = signature(Run(tmp_path, "r", settings, {}), {"data.source.seed", "data.cuts.seed"})
    assert "data.source.seed" not in kept
    assert kept["data.cuts.seed"] == 9
    assert kept["data.log"] == "<run>/log"
    assert "seed" not in kept
    assert not any(key.startswith("paths") for key in kept)


@pytest.mark.parametrize(
    ("ckpt_path", "kept"),
    [("auto", False), ("last", False), (None, False), ("run/checkpoints/best.ckpt", False), ("sft/last.ckpt", True)],
)
def test_initial_weights_distinguish_runs(tmp_path, ckpt_path, kept):
    """Averaging it with runs from the original model would be wrong; the resumed checkpoint does not matter."""
    path = f"{tmp_path}/{ckpt_path}" if ckpt_path and "/" in ckpt_path else ckpt_path
    settings = config("dpo", 7, tmp_path / "run") | {"ckpt_path": path, "rerun": True}
    options = signature(Run(tmp_path / "run", "r", settings, {}))
    assert ("ckpt_path" in options) == kept
    assert "rerun" not in options


def test_a_constant_seed_is_no_copy(tmp_path):
    """The model's seed 0 equals that of one run. Dropping it there would separate that run from its group."""
    for seed in (0, 1, 2):
        write_run(tmp_path / str(seed), seed=seed)
    runs = read_runs([tmp_path])
    assert copies_of_the_seed(runs) == {"callbacks.step_seed.seed", "callbacks.samples.seed", "data.source.seed"}
    assert labels(tmp_path) == ["dpo"]


def test_labels_have_the_options_that_distinguish_groups_of_a_method(tmp_path):
    write_sweep(tmp_path, ["dpo", "ipo"], seeds=1, beta=[0.1, 0.5])
    write_run(tmp_path / "x", "kto", lr=0.1)
    assert sorted(labels(tmp_path)) == ["dpo beta=0.1", "dpo beta=0.5", "ipo beta=0.1", "ipo beta=0.5", "kto"]


def test_labels_are_unique_without_configurations(tmp_path):
    """Two jobs that failed before they had a configuration are two rows, named after their folders."""
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({"status": "failed", "error": "no such key"}))
    assert labels(tmp_path) == ["unknown (0)", "unknown (1)"]


def test_labels_have_as_few_options_as_possible():
    """Two recipes differ in many options at once; a grid needs both of its axes, a corner of it does not."""
    recipe = {"method.loss.beta": 0.1, "trainer.max_steps": 5, "model.name": "a/b/c", "data.name": "x"}
    other = {"method.loss.beta": 0.5, "trainer.max_steps": 9, "model.name": "d", "data.name": "y"}
    assert distinguishing_keys([recipe, other]) == ["method.loss.beta"]
    assert labels_of(["dpo", "dpo"], [recipe, other], ["0", "1"]) == ["dpo beta=0.1", "dpo beta=0.5"]
    grid = [{"model.name": "a/b/c", "lr": lr, "note": lr} for lr in (1, 2)] + [{"model.name": "d", "lr": 1, "note": 1}]
    assert distinguishing_keys(grid) == ["model.name", "lr"]
    assert distinguishing_keys([{"a": {}, "b": 1}, {"b": 2}]) == ["b"]
    assert labels_of(["m"] * 3, grid, ["0", "1", "2"])[0] == "m name=b/c lr=1"
    assert distinguishing_keys([{"a": 1}, {"a": 1}]) == []


def test_labels_of_many_switches_have_the_unusual_values_alone():
    """As where each of many switches is tried: one label has all usual values, the others what they change."""
    usual = {f"method.switch_{letter}": True for letter in "abcde"}
    groups = [usual, *({**usual, key: False} for key in usual), dict.fromkeys(usual, False)]
    labels = labels_of(["m"] * len(groups), groups, [str(index) for index in range(len(groups))])
    assert labels[:3] == ["m (usual values)", "m switch_a=false", "m switch_b=false"]
    assert labels[-1] == "m switch_a=false switch_b=false switch_c=false switch_d=false switch_e=false"
    assert len(set(labels)) == len(groups)


def test_observing_callbacks_do_not_separate_groups(tmp_path):
    """A callback that only observes may differ between seeds; one that changes the weights may not."""
    for seed in (1, 2):
        write_run(tmp_path / str(seed), seed=seed)
    file = tmp_path / "2" / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["callbacks"]["throughput"] = {"peak_tflops": 3}
    file.write_text(yaml.safe_dump(settings))
    assert labels(tmp_path) == ["dpo"]
    settings["callbacks"]["ema"] = {"decay": 0.9}
    file.write_text(yaml.safe_dump(settings))
    assert len(labels(tmp_path)) == 2


def test_families_come_from_the_caller_or_the_module(tmp_path):
    write_run(tmp_path / "a", "dpo")
    write_run(tmp_path / "b", "kto")
    groups = group_runs(read_runs([tmp_path]), {"dpo": "log-ratio difference"})
    assert [group.family for group in groups] == ["log-ratio difference", "unpaired"]


def test_differing_keys_in_order():
    options = [{"b": 1, "a": 1, "c": 0}, {"b": 2, "c": 0}, {"b": 1, "c": 0, "d": None}]
    assert differing(options) == ["b", "a", "d"]  # a missing key differs, even from null
    assert differing([{"a": 1}]) == []


def test_short_names_take_more_parts_where_needed():
    keys = ["method.loss.beta", "optimizer.lr", "data.source._target_", "data.validation.source._target_", "model.lr"]
    assert short_names(keys) == {
        "method.loss.beta": "beta",
        "optimizer.lr": "optimizer.lr",
        "model.lr": "model.lr",
        "data.source._target_": "data.source",
        "data.validation.source._target_": "validation.source",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1e-05"), (0.1, "0.1"), (True, "true"), (None, "null"), ([0.9, 1], "[0.9, 1]"), ("a.b", "a.b"),
     ("rlhf_lightning.losses.dpo", "dpo")],
)  # fmt: skip
def test_plain_values(value, text):
    assert plain(value) == text


def test_flat_keeps_empty_containers():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_numeric_swept_options(tmp_path):
    """Three values within one method make a curve; two do not, and neither do true and false."""
    write_sweep(tmp_path, ["dpo"], seeds=1, beta=[0.1, 0.2, 0.5], lr=[0.1, 0.2])
    assert by_numeric_key(group_runs(read_runs([tmp_path]))) == ["method.loss.beta"]


def test_a_job_without_config_joins_its_group(tmp_path):
    """It failed before its configuration was resolved: Hydra's copy is followed one step."""
    for name, seed in (("0", 1), ("2", 3)):
        write_run(tmp_path / name, seed=seed)
    raw = config("dpo", 2, tmp_path / "1") | {"paths": {"output_dir": None, "runs": "runs"}}
    raw["data"]["source"]["seed"] = "${seed}"
    (tmp_path / "1" / ".hydra").mkdir(parents=True)
    (tmp_path / "1" / ".hydra" / "config.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "1" / "result.json").write_text('{"status": "failed", "error": "no"}')
    (group,) = group_runs(read_runs([tmp_path]))
    assert [run.state for run in group.runs] == ["done", "failed", "done"]
    assert resolved({"a": ["${b.c}"], "b": {"c": 3}}, tmp_path)["a"] == [3]


def test_rounds_that_were_chosen_are_part_of_the_label(tmp_path):
    """They distinguish two runs of the same method; a run without rounds has none."""
    for name, rounds in (("a", "iterative"), ("b", "online"), ("c", "none")):
        run = write_run(tmp_path / name, "dpo")
        hydra = {"hydra": {"runtime": {"choices": {"method": "dpo", "rounds": rounds}}}}
        (run / ".hydra").mkdir()
        (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))
    assert labels(tmp_path) == ["dpo rounds=iterative", "dpo rounds=online", "dpo"]


def test_the_method_is_the_chosen_yaml(tmp_path):
    write_run(tmp_path / "0", "dpo")
    (tmp_path / "0" / ".hydra").mkdir()
    hydra = {"hydra": {"runtime": {"choices": {"method": "tr_dpo", "debug": None}}}}
    (tmp_path / "0" / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))
    assert read_run(tmp_path / "0", "0").method == "tr_dpo"
