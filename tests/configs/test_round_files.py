"""Training inside a round is training on the round's file: the same weights to the bit, from the same start.

Three things have to be the same that a data set does not hold by itself: the order of the groups, which a round deals
out by its number (the file is sorted so here, and read without shuffling); the learning rate, so it is constant; and
the optimiser's state, which a run that begins on the file does not have, so the optimiser keeps none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_lightning.data.batches.plan import Batching, plan_steps
from rlhf_lightning.ops.streams import stream_seed
from tests.configs.test_rounds import REWARD

SEED, STEPS = 5, 2
SAME = ["method=dpo", "optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=0.5", "scheduler=constant",
        "trainer.max_epochs=-1", f"seed={SEED}", "data.validation=null", "model.hidden_size=16"]  # fmt: skip
ROUNDS = [*REWARD, "rounds=iterative", "rounds.selector.cut_off=keep",
          "rounds.draws=[{source: policy, n: 2}]", f"rounds.minibatches={STEPS}", "rounds.reference=round_start",
          "rollout.max_new_tokens=4"]  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state
    return state


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def as_dealt(file: Path, number: int) -> Path:
    """The rows of a round's file in the order in which its steps have them."""
    rows = file.read_text().splitlines(keepends=True)
    ones = np.ones(len(rows), dtype=np.int64)
    batching = Batching(1, seed=stream_seed("minibatches", SEED, number))
    order = plan_steps(ones, ones[:, None], batching, steps=STEPS).order
    dealt = file.with_suffix(".dealt.jsonl")
    dealt.write_text("".join(rows[at] for at in order))
    return dealt


@pytest.fixture
def trained(rlhf, tiny, tmp_path):
    """``rlhf train`` in a folder; the weights that it ends with."""

    def train(name: str, *options: str) -> dict[str, torch.Tensor]:
        code, _, err = rlhf("train", *tiny, *SAME, *options, f"paths.output_dir={tmp_path / name}")
        assert code == 0, err
        return weights(tmp_path / name)

    return train


@pytest.mark.slow
def test_training_in_a_round_is_training_on_its_file(trained, tmp_path):
    """The first round from the run's start, the second from the weights and with the reference of its own start."""
    first = trained("one", *ROUNDS, "trainer.max_steps=2")
    second = trained("two", *ROUNDS, "trainer.max_steps=4")
    groups = [as_dealt(tmp_path / "two" / "rollouts" / "groups" / f"0000{number}.jsonl", number) for number in (0, 1)]
    assert [len(file.read_text().splitlines()) for file in groups] == [4, 4]
    offline = ["trainer.max_steps=2", "data.loading.shuffle=false"]
    assert_equal(first, trained("first", *offline, f"data.source.path={groups[0]}"))
    start = f"ckpt_path={tmp_path / 'one' / 'checkpoints' / 'last.ckpt'}"
    assert_equal(second, trained("second", *offline, f"data.source.path={groups[1]}", start))
    assert any(not torch.equal(first[name], second[name]) for name in first)
