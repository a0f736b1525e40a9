"""The base: always the same, cached atomically, trained once by many jobs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from rlhf_lightning.models.sources import ModelSource
from rlhf_lightning.world import TinyWorld, grammar
from rlhf_lightning.world.base import kept

SMALL = TinyWorld(hidden_size=16, layers=1, heads=2, intermediate_size=16, steps=2, batch_size=2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    return tmp_path


def test_is_a_model_source(cache):
    assert isinstance(SMALL, ModelSource)
    SMALL.tokenizer()
    assert not (cache / "world").exists()  # the tokenizer needs no training


def test_same_weights_wherever_it_is_trained(tmp_path, monkeypatch):
    states = []
    for name in ("a", "b"):
        monkeypatch.setenv("RLHF_CACHE", str(tmp_path / name))
        torch.manual_seed(len(states))  # whatever the global generator is at
        before = torch.random.get_rng_state()
        states.append(SMALL.load().state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_second_load_reads(cache):
    folder = SMALL.folder()
    trained = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    SMALL.load()
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == trained
    assert json.loads((folder / "base.json").read_text())["parameters"] == SMALL.load().num_parameters()


def test_digest_covers_everything_that_determines_the_weights():
    changed = [replace(SMALL, **{name: value}) for name, value in (("seed", 1), ("steps", 3), ("lr", 1e-3))]
    same = [replace(SMALL, **{name: value}) for name, value in (("backend", "padded"), ("dtype", "bfloat16"))]
    assert len({SMALL.digest(), *(world.digest() for world in changed)}) == 4
    assert {world.digest() for world in same} == {SMALL.digest()}


def test_a_language_of_another_world_is_another_base(monkeypatch):
    before = SMALL.digest()
    monkeypatch.setitem(grammar.ANIMALS, "fox", ("blue",) * 3)
    assert SMALL.digest() != before


def test_many_jobs_make_it_once(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "model").mkdir()
        (folder / "model" / "file").write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: kept(tmp_path / "base", make), range(4)))
    assert len(made) == 1
    assert {(folder / "model" / "file").read_text() for folder in folders} == {"whole"}


def test_a_failure_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        kept(tmp_path / "base", fail)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_an_unwritable_cache_names_the_variable_to_set(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="Set RLHF_CACHE"):
        kept(file / "base", lambda folder: None)


def test_unknown_dtype():
    with pytest.raises(ValueError, match=r"model\.dtype='int8'"):
        TinyWorld(dtype="int8")  # type: ignore[arg-type]
