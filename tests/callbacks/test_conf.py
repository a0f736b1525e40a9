"""Every yaml of the callbacks and strategy groups is composed, checked and instantiated."""

from __future__ import annotations

import lightning as L
import pytest

from rlhf_lightning import callbacks
from rlhf_lightning.callbacks import EMAWeights, PolicySamples, ReferenceSync
from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.cli.build import make_strategy, make_trainer
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.instantiate import make_all
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.strategies import FSDP2Strategy

CALLBACKS = sorted(path.stem for path in (conf_dir() / "callbacks").glob("*.yaml"))
STRATEGIES = sorted(path.stem for path in (conf_dir() / "strategy").glob("*.yaml"))


def composed(tmp_path, *overrides: str):
    return compose("train", ["model=tiny_random", f"paths.output_dir={tmp_path}", *overrides])


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks(tmp_path, name):
    made = make_all(composed(tmp_path, f"callbacks={name}").callbacks)
    assert all(isinstance(callback, L.Callback) for callback in made)
    assert len(made) == {"default": 14, "tiny": 8, "none": 0}.get(name, 1)


def test_callbacks_are_added_to_the_default_ones_and_dropped_by_name(tmp_path):
    cfg = composed(
        tmp_path, "callbacks=[default,ema,reference_sync]", "callbacks.samples=null", "callbacks.ema.decay=0.5"
    )
    made = {type(callback): callback for callback in make_all(cfg.callbacks)}
    assert made[EMAWeights].decay == 0.5
    assert ReferenceSync in made
    assert PolicySamples not in made


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies(tmp_path, name):
    """As the command line does it: arguments of the Trainer, beside the plugin that writes checkpoints."""
    options = make_strategy(composed(tmp_path, f"strategy={name}", "strategy.devices=1").strategy)
    run = L.Trainer(accelerator="cpu", logger=False, plugins=[AtomicCheckpointIO()], **options)
    assert isinstance(run.strategy, FSDP2Strategy) == name.startswith("fsdp")
    assert isinstance(run.strategy.checkpoint_io, AtomicCheckpointIO)
    assert run.world_size == 1


def test_every_file_begins_with_what_it_is_and_a_command():
    for group in ("callbacks", "strategy"):
        for file in (conf_dir() / group).glob("*.yaml"):
            first = file.read_text().splitlines()[0]
            assert first.startswith("# "), file
            assert "rlhf train " in first, file


def test_an_empty_list_of_callbacks_is_none_of_them(tmp_path):
    """Hydra leaves the key out of what it composes."""
    assert not [c for c in make_trainer(composed(tmp_path, "callbacks=[]")).callbacks if type(c) in callback_types()]


def callback_types():
    return {thing for thing in vars(callbacks).values() if isinstance(thing, type)}
