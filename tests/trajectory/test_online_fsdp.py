"""On-policy runs on two processes that each hold half of every weight: killed and resumed."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.critics import Costly, ppo_of
from tests.helpers.jobs import differences, in_processes, ranks
from tests.helpers.online import fit, module_of, trajectory
from tests.helpers.training import examples
from tests.trajectory.test_online_invariance import SGD, assert_same, samples

FILE = partial(FSDP2Strategy)
SHARDS = partial(FSDP2Strategy, save_distributed_checkpoint=True)
#: Four steps a rollout, a checkpoint after every third step, twelve steps.
TWO = {"devices": 2, "max_epochs": 1}
#: While rollout 1 is drawn, and between its first inner epoch and its second.
KILLS = ({"kill_call": 2}, {"kill_at": 7})


def left(folder: Path) -> dict[str, Any]:
    """Everything that a run's last checkpoint holds, whole, the generator's state and the rollouts' rows."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_dir():
        dcp_to_torch_save(last, folder / "whole.pt")
        state = torch.load(folder / "whole.pt") | torch.load(last / "meta.pt")
    else:
        state = torch.load(last)
    rows = [json.loads(line) for file in sorted((folder / "rollouts").glob("*.jsonl")) for line in file.open()]
    return state | {"rng": torch.load(folder / "rng.pt"), "rows": rows}


def killed_and_resumed(folder: Path, *kills: dict[str, int], **options: Any) -> dict[str, Any]:
    """Hold a run whose processes died, once or several times, against one in which they did not; what they left."""
    whole, cut = folder / "whole", folder / "cut"
    options = TWO | options
    assert ranks(2, fit, whole, **options) == [0, 0]
    for kill in kills:
        assert ranks(2, fit, cut, **options, **kill) == [-signal.SIGKILL] * 2
    assert ranks(2, fit, cut, **options) == [0, 0]
    one, other = left(whole), left(cut)
    assert differences(one, other) == []
    return one


def demonstrations(**options: Any) -> AlignmentDataModule:
    """Three rows beside every step, which two processes cannot share evenly."""
    return AlignmentDataModule(examples(9, responses=1), batch_size=3, **options)


MAKES: dict[str, dict[str, Any]] = {
    "grpo": {"make": module_of},
    # sampled from a copy of the gathered weights
    "grpo_bfloat16": {"make": module_of, "dtype": "bfloat16"},
    # two critics of their own, the multiplier and its window; demonstrations mixed in
    "ppo": {
        "make": partial(ppo_of, "separate", cost=True, policy_loss={"ptx_coef": 0.5}),
        "reward": Costly(),
        "ptx": demonstrations,
    },
}


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param("grpo", FILE, id="grpo-file", marks=pytest.mark.slow),
        pytest.param("ppo", FILE, id="ppo-file", marks=pytest.mark.slow),
        pytest.param("grpo_bfloat16", FILE, id="grpo_bfloat16-file", marks=pytest.mark.slow),
        *(pytest.param(name, SHARDS, id=f"{name}-shards", marks=pytest.mark.slow) for name in MAKES),
    ],
)
def test_killed_and_resumed(tmp_path, name, strategy):
    """Weights, optimiser, controller, running scales, the rollout at hand with its old values, files: to the bit.

    Both processes die twice: while a rollout is drawn, and in the inner epochs of another one.
    """
    state = killed_and_resumed(tmp_path, *KILLS, strategy=strategy, **MAKES[name])
    assert state["global_step"] == 12


@pytest.mark.parametrize("name", [pytest.param("ppo", marks=pytest.mark.slow), "grpo_bfloat16"])
def test_single_is_fsdp(tmp_path, name):
    """Demonstrations in both processes' shares of a step; a copy whose weights are gathered at each sync."""
    options = dict(MAKES[name])
    make = partial(options.pop("make"), optimizer=SGD)
    single = trajectory(make, tmp_path / "single", **options)
    folder = tmp_path / "fsdp"
    sharded = in_processes(2, folder, trajectory, make, folder, devices=2, strategy=FILE, **options)
    assert samples(tmp_path / "single") == samples(folder)
    assert_same(single, sharded, 2e-4)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param(FILE, marks=pytest.mark.slow)], ids=["ddp", "file"])
def test_early_stop(tmp_path, strategy):
    """At step 6 the policy has moved too far, and the checkpoint of that step knows it."""
    make = partial(module_of, policy_loss={"target_kl": 1e-6})
    state = killed_and_resumed(tmp_path, {"kill_at": 7}, make=make, strategy=strategy)
    assert state["state_dict"]["stopped"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [FILE, SHARDS], ids=["file", "shards"])
def test_critic_warmup(tmp_path, strategy):
    """The policy's weights have no optimiser state until the critic has had its first steps alone."""
    make = partial(ppo_of, "shared", value_loss={"critic_warmup": 5})
    state = killed_and_resumed(tmp_path, {"kill_at": 4}, make=make, reward=Costly(), strategy=strategy)
    assert state["global_step"] == 12
