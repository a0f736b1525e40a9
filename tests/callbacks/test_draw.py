"""A job that only draws: the rounds of an epoch in files, and no weight moves."""

from __future__ import annotations

import json

import pytest
import torch

from rlhf_lightning.callbacks import DrawRounds
from tests.helpers.online import Engine
from tests.helpers.rounds import data_of, module_of
from tests.helpers.training import loader, preference, trainer


def test_an_epoch_of_rounds_is_drawn_with_the_weights_of_the_start(tmp_path):
    """The first of them is what training on it would draw; a second job reads what is there."""
    module, engine = module_of(), Engine()
    run = trainer(tmp_path / "drawn", [DrawRounds()], max_steps=0)
    run.fit(module, datamodule=data_of(module, tmp_path / "rounds", engine))
    files = sorted((tmp_path / "rounds").glob("*.jsonl"))
    assert [file.name for file in files] == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    assert len(list((tmp_path / "rounds" / "groups").glob("*.jsonl"))) == 3
    assert engine.calls == 3
    rows = [json.loads(line) for file in files for line in file.open()]
    assert len({row["index"] for row in rows}) == 24
    assert {row["version"] for row in rows} == {0}
    fresh = module_of()
    fresh.configure_model()
    assert all(torch.equal(a, b) for a, b in zip(module.policy.parameters(), fresh.policy.parameters(), strict=True))
    trained, again = module_of(), Engine()
    other = trainer(tmp_path / "trained", max_epochs=1, max_steps=1, limit_val_batches=0)
    other.fit(trained, datamodule=data_of(trained, tmp_path / "rounds", again))
    assert again.calls == 0, "training finds the round"


def test_a_job_that_would_train_is_refused(tmp_path):
    module = module_of()
    with pytest.raises(ValueError, match=r"trainer\.max_steps=3: set trainer\.max_steps=0"):
        trainer(tmp_path, [DrawRounds()], max_steps=3).fit(module, datamodule=data_of(module, None))
    with pytest.raises(ValueError, match=r"draws no responses; choose rounds="):
        trainer(tmp_path, [DrawRounds()], max_steps=0).fit(preference(), loader())
