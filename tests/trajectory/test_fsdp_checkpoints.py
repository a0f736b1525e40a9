"""Checkpoints of sharded runs: exact after a kill, readable by other strategies, whole or absent."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.adapter_jobs import fit_adapter, save_adapter
from tests.helpers.jobs import differences, final_state, fit, forked, ranks

TWO = {"devices": 2, "accumulate_grad_batches": 2, "max_epochs": 2}
FILE = partial(FSDP2Strategy)
SHARDS = partial(FSDP2Strategy, save_distributed_checkpoint=True)


def whole_state(folder: Path) -> dict[str, Any]:
    """Everything in the last checkpoint of a run, a folder of shards, whole."""
    shards = folder / "checkpoints" / "last.ckpt"
    dcp_to_torch_save(shards, folder / "whole.pt")
    rest = torch.load(shards / "meta.pt", weights_only=True)
    return {"shards": torch.load(folder / "whole.pt", weights_only=True), "rest": rest}


def tensors(tree: Any) -> list[torch.Tensor]:
    """Every tensor in nested containers."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tensor for node in inner for tensor in tensors(node)]


def weights(folder: Path, kind: str, strategy: Any) -> None:
    """Leave the final weights and optimiser state of a finished run in a file, by loading its last checkpoint."""
    _, run = fit(folder, kind, strategy=strategy, **TWO)
    state = run.strategy.lightning_module_state_dict()
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}
    if run.is_global_zero:
        torch.save(whole, folder / "weights.pt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny", "tiny_lora_dropout"])
@pytest.mark.parametrize("strategy", [FILE, SHARDS], ids=["file", "shards"])
def test_killed_fsdp_run_resumes_exactly(tmp_path, kind, strategy):
    """Both processes die; weights, optimiser, average, refreshed reference and running moments come back."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert ranks(2, fit, whole, kind, strategy=strategy, **TWO) == [0, 0]
    assert ranks(2, fit, cut, kind, 7, strategy=strategy, **TWO) == [-signal.SIGKILL] * 2
    assert ranks(2, fit, cut, kind, strategy=strategy, **TWO) == [0, 0]
    if strategy is FILE:
        expected, resumed = final_state(whole), final_state(cut)
        assert expected["global_step"] == 10
        assert differences(expected, resumed) == []
        assert expected["reference"]
        return
    for folder in (whole, cut):
        assert ranks(2, weights, folder, kind, strategy) == [0, 0]
    expected, resumed = torch.load(whole / "weights.pt"), torch.load(cut / "weights.pt")
    assert differences(expected, resumed) == []
    expected, resumed = whole_state(whole), whole_state(cut)
    assert differences(expected, resumed) == []
    # What is kept of every weight is among the shards: in the file beside them rank 0 would hold all of it.
    sharded = expected["shards"]["sharded"]
    assert any("EMAWeights" in name for name in sharded)
    assert any(name.startswith("reference.") for name in sharded)
    assert expected["rest"]["reference"]
    assert max((tensor.numel() for tensor in tensors(expected["rest"])), default=0) < 32


@pytest.mark.parametrize("kind", ["tiny", pytest.param("tiny_lora", marks=pytest.mark.slow)])
def test_fsdp_resumes_from_a_single_process_and_back(tmp_path, kind):
    """Fails when optimiser state is matched by position: decayed and other weights are separate groups."""
    single, moved = tmp_path / "single", tmp_path / "moved"
    options = {"accumulate_grad_batches": 2, "max_epochs": 2}
    fit(single, kind, **options)
    assert forked(fit, moved, kind, 3, **options) == -signal.SIGKILL
    assert ranks(2, fit, moved, kind, 7, strategy=FILE, **TWO) == [-signal.SIGKILL] * 2
    fit(moved, kind, **options)
    expected, resumed = final_state(single), final_state(moved)
    for name, weight in expected["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], weight, atol=1e-4, rtol=1e-4)
    assert resumed["global_step"] == expected["global_step"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [FILE, SHARDS], ids=["file", "shards"])
def test_killed_fsdp_run_keeps_the_adapters_start_as_its_reference(tmp_path, strategy):
    """The adapter that training began with lies in a folder that another run has written since."""
    start, whole, cut = tmp_path / "start", tmp_path / "whole", tmp_path / "cut"
    adapter = save_adapter(start, 0)
    assert ranks(2, fit_adapter, whole, adapter, strategy=strategy, **TWO) == [0, 0]
    assert ranks(2, fit_adapter, cut, adapter, 5, strategy=strategy, **TWO) == [-signal.SIGKILL] * 2
    save_adapter(start, 1)
    assert ranks(2, fit_adapter, cut, adapter, strategy=strategy, **TWO) == [0, 0]
    if strategy is FILE:
        assert final_state(whole)["reference_start"]
        assert differences(final_state(whole), final_state(cut)) == []
        return
    expected = whole_state(whole)
    assert expected["rest"]["reference_start"]
    assert differences(expected, whole_state(cut)) == []
