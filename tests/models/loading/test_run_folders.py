"""Folders of runs in the place of a model, an adapter or a reward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.export.policy import export
from rlhf_lightning.models.loading.run_folders import exported
from rlhf_lightning.models.loading.weights import is_quantized
from rlhf_lightning.models.sources import Pretrained, RunExport, TinyRandom
from rlhf_lightning.rewards import ModelReward
from tests.models.adapters.test_merging import TOKENIZER, logits, moved


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a folder."""
    folder = tmp_path_factory.mktemp("base")
    TinyRandom().load().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that exported an adapter."""
    folder = tmp_path_factory.mktemp("run")
    export(moved(Lora(r=4, seed=0).apply(Pretrained(str(base)).load())), TOKENIZER, folder / "export/last")
    return folder


def test_a_run_is_a_model_with_its_adapter_in_its_base(base: Path, run: Path) -> None:
    """Under the folder of the run and under that of its export."""
    by_name = Pretrained(str(run / "export/last")).load()
    for folder in (run, run / "export/last"):
        torch.testing.assert_close(logits(RunExport(run=str(folder)).load()), logits(by_name), rtol=0, atol=0)
    assert not torch.equal(logits(by_name), logits(Pretrained(str(base)).load()))


def test_a_runs_adapter_is_trained_on(base: Path, run: Path) -> None:
    adapter = Lora(run=str(run))
    assert adapter.path == str(run / "export/last")
    adapted = adapter.apply(Pretrained(str(base)).load())
    torch.testing.assert_close(logits(adapted), logits(RunExport(run=str(run)).load()))


def test_an_adapter_is_merged_before_its_base_is_quantised(run: Path, tmp_path: Path) -> None:
    """The model that a second stage in 4 bits starts from is the one that the first stage made."""
    pytest.importorskip("bitsandbytes")
    settings = Lora(quantize="nf4").quantization()
    RunExport(run=str(run)).load().save_pretrained(tmp_path)
    quantised = RunExport(run=str(run)).load(settings)
    assert is_quantized(quantised)
    torch.testing.assert_close(logits(quantised), logits(Pretrained(str(tmp_path)).load(settings)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: RunExport(run=f"{folder}/none"), r"model\.run=.*none: there is no such folder"),
        (lambda folder: RunExport(run=str(folder)), r"the run has no export/last; rlhf export run="),
        (lambda folder: RunExport(run=str(folder), export="best"), r"the run has no export/best"),
        (lambda folder: Lora(run=str(folder)), r"adapter\.run=.*the run has no export/last"),
        (lambda folder: ModelReward(run=str(folder)), r"reward\.run=.*the run has no export/last"),
        (lambda folder: ModelReward(), r"reward\.path=<folder or hub id> or reward\.run="),
        (lambda folder: ModelReward(path="a", run="b"), r"reward\.path=<folder or hub id> or reward\.run="),
    ],
)
def test_refused_before_weights_load(make, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


def test_whole_weights_are_no_adapter(base: Path) -> None:
    assert exported(base, "model.run") == base
    with pytest.raises(ValueError, match=r"holds whole weights and no adapter: choose model=run"):
        Lora(run=str(base))
