"""Differences that make a run another run, and allowed ones."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf_lightning.cli.identity import MAY_CHANGE, OBSERVERS, compare, digest, listed

SAMPLES = {"_target_": "rlhf_lightning.callbacks.PolicySamples", "prompts": 8}
RUN: dict[str, Any] = {
    "method": {"loss": {"_target_": "rlhf_lightning.losses.dpo", "beta": 0.1}},
    "data": {
        "batch_size": 8,
        "max_tokens": None,
        "source": {"path": "a.jsonl", "limit": None},
        "loading": {"num_workers": 0},
    },
    "trainer": {"max_steps": 10, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0},
    "strategy": {"devices": 1},
    "callbacks": {"samples": SAMPLES, "ema": {"_target_": "rlhf_lightning.callbacks.EMAWeights", "decay": 0.9}},
    "adapter": {},
    "seed": 1,
}


def changed(key: str, value: Any, tree: dict[str, Any] = RUN) -> dict[str, Any]:
    name, _, rest = key.partition(".")
    inner = changed(rest, value, tree.get(name) or {}) if rest else value
    return {**tree, name: inner}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method.loss.beta", 0.2),
        ("seed", 2),
        ("data.batch_size", 4),
        ("data.source.limit", 3),
        ("trainer.gradient_clip_val", None),
        ("adapter", {"r": 8}),
        ("callbacks.ema", None),
        ("callbacks.ema.decay", 0.99),
        ("callbacks.other", {"_target_": "mine.Callback"}),
        ("callbacks.samples._target_", "mine.Callback"),  # a name says nothing of what it is
        ("a_new_group.option", 1),
    ],
)
def test_another_run(key, value):
    """Fails when a key is allowed that nobody listed, or a callback by its name alone."""
    comparison = compare(RUN, changed(key, value))
    assert {difference.key.startswith(key) for difference in comparison.refused} == {True}
    assert not comparison.allowed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.max_steps", 20),
        ("trainer.val_check_interval", 0.5),
        ("trainer.accumulate_grad_batches", 1),
        ("strategy.devices", 2),
        ("data.loading.num_workers", 2),
        ("data.source.path", "b.jsonl"),
        ("callbacks.samples", None),
        ("callbacks.samples.prompts", 2),
        ("callbacks.bar", {"_target_": "lightning.pytorch.callbacks.TQDMProgressBar"}),
        ("logger", {"csv": {"_target_": "x"}}),
    ],
)
def test_the_same_run(key, value):
    comparison = compare(RUN, changed(key, value))
    assert not comparison.refused
    assert comparison.allowed


@pytest.mark.parametrize("key", ["trainer.accumulate_grad_batches", "strategy.devices"])
def test_a_budget_of_tokens_makes_the_cut_part_of_the_run(key):
    """A step is then as many micro-batches as there are processes and accumulated batches."""
    run = changed("data.max_tokens", 512)
    assert [difference.key for difference in compare(run, changed(key, 4, run)).refused] == [key]


def test_how_long_processes_wait_for_each_other_is_never_part_of_the_run():
    """Also of runs with a budget of tokens, whose other options of the strategy are; older runs lack the option."""
    run = changed("data.max_tokens", 512)
    assert compare(run, changed("strategy.timeout", 60, run)).refused == []


def test_nothing_and_null_are_the_same():
    assert not compare(RUN, changed("reward", {})).refused
    assert not compare(RUN, changed("data.loading.bucket", None)).refused


def test_a_difference_names_both_values():
    text = listed(compare(RUN, changed("method.loss.beta", 0.5)).refused)
    assert text == "method.loss.beta: 0.1 -> 0.5"
    many = {**RUN, "optimizer": {f"option_{number}": number for number in range(12)}}
    assert listed(compare(RUN, many).refused).endswith(", and 4 more")


def test_every_entry_has_a_reason_and_every_observer_exists():
    assert all(MAY_CHANGE.values())
    for path in OBSERVERS:
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_the_file_behind_a_transform_counts_by_content(tmp_path):
    """Fails when two jobs of a sweep with other examples at one path are one job."""
    file = tmp_path / "best.txt"
    tree = OmegaConf.create({"paths": {}, "prompting": {"text": None, "file": str(file)}})
    jobs = []
    for text in ("Think first.", "Be brief."):
        file.write_text(text)
        jobs.append(digest(tree))
    assert jobs[0] != jobs[1]
    assert digest(OmegaConf.create({"paths": {}, "prompting": None}))
