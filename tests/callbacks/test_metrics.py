"""Logged metrics of the callbacks, against numbers computed from the batch."""

from __future__ import annotations

from functools import partial

import lightning as L
import numpy as np
import pytest
import torch

from rlhf_lightning.callbacks import ImplicitRewards, LogRatios, ResponseStatistics, Throughput
from rlhf_lightning.losses import dpo
from rlhf_lightning.types import SequenceLogProbs
from tests.helpers.jobs import Memory
from tests.helpers.training import examples, loader, micro_batches, preference, supervised, trainer


def run(tmp_path, module, *callbacks, val=None, **options):
    logger = Memory()
    trainer(tmp_path, callbacks, logger=logger, **options).fit(module, loader(2), val)
    return logger


def test_rewards_by_hand(tmp_path):
    """The metrics of validation, recomputed response by response from the trained policy."""
    module = preference(partial(dpo, beta=0.5), lr=0.3)
    logger = run(tmp_path, module, ImplicitRewards(), val=loader(1, batch=6))
    module.eval()
    ratios, lengths = [], []
    for row in examples(6):
        batch = micro_batches([row], 1)[0]
        with torch.no_grad():
            ratios.append((module.policy(batch).sum() - module.reference(batch).sum()).tolist())
        lengths.append([len(response) for response in row.responses])
    rewards = 0.5 * torch.tensor(ratios)
    margin = rewards[:, 0] - rewards[:, 1]
    longer = torch.tensor([a - b for a, b in lengths]).sign()
    expected = {
        "chosen": rewards[:, 0].mean(),
        "rejected": rewards[:, 1].mean(),
        "margin": margin.mean(),
        "accuracy": (1 + margin.sign()).mean() / 2,
        "length_bias": (margin.sign() * longer).mean(),
    }
    for name, value in expected.items():
        assert logger.series(f"val/reward/{name}")[-1] == pytest.approx(float(value), abs=1e-5), name
    assert 0 < expected["accuracy"] < 1


def test_accuracy_is_one_half_where_policy_and_reference_are_equal(tmp_path):
    logger = run(tmp_path, preference(), ImplicitRewards(), max_steps=1)
    assert logger.series("train/reward/accuracy") == [0.5]


def test_log_ratios_of_the_training_data(tmp_path):
    """Summed over a response, of all, of chosen and of rejected ones; they are no KL, and nothing is called so."""
    module = preference(lr=0.3)
    logger = run(tmp_path, module, LogRatios())
    assert logger.series("train/log_ratio/mean")[0] == pytest.approx(0.0, abs=1e-6)
    assert not any("kl" in name for row in logger.rows for name in row)
    module = preference(lr=0.3)
    trainer(tmp_path, max_steps=1).fit(module, loader(2))
    batch = micro_batches(examples(8)[4:], 1)[0]
    with torch.no_grad():
        ratio = module.policy(batch).token - module.reference(batch).token
    summed = torch.zeros(8).index_add(0, batch.sequence, ratio)
    expected = {"mean": summed, "chosen": summed[::2], "rejected": summed[1::2]}
    for name, values in expected.items():
        assert logger.series(f"train/log_ratio/{name}")[1] == pytest.approx(float(values.mean()), abs=1e-5), name
    assert abs(float(summed[::2].mean() - summed[1::2].mean())) > 0.01


def test_response_statistics(tmp_path):
    logger = run(tmp_path, preference(statistics=["entropy"]), ResponseStatistics(), val=loader(1))
    names = {name for row in logger.rows for name in row}
    assert {"train/length/chosen", "train/log_prob/rejected", "train/token/entropy", "val/token/accuracy"} <= names
    assert "train/token/accuracy" not in names
    lengths = [float(len(row.responses[0])) for row in examples(4)]
    assert logger.series("train/length/chosen")[0] == pytest.approx(sum(lengths) / 4)


def test_callbacks_of_pairs_leave_other_methods_alone(tmp_path):
    logger = Memory()
    callbacks = [ImplicitRewards(), LogRatios(), ResponseStatistics()]
    trainer(tmp_path, callbacks, logger=logger).fit(supervised(), loader(2, responses=1))
    names = {name for row in logger.rows for name in row}
    assert "train/length/response" in names
    assert not [name for name in names if "reward" in name or "kl" in name]


def test_throughput_counts_the_tokens_of_the_whole_step(tmp_path, monkeypatch):
    """A clock that jumps by one second a look: fails when only the last micro-batch is counted."""
    clock = iter(range(1000))
    monkeypatch.setattr("rlhf_lightning.callbacks.throughput.time.perf_counter", lambda: next(clock))
    logger = Memory()
    module = preference()
    trainer(tmp_path, [Throughput(peak_tflops=1.0)], logger=logger, accumulate_grad_batches=2).fit(
        module, loader(2, batch=4, parts=2)
    )
    tokens = [sum(len(batch.ids) for batch in micro_batches(rows, 2)) for rows in (examples(8)[:4], examples(8)[4:])]
    rates = logger.series("train/throughput/tokens_per_second")
    assert rates == pytest.approx([float(count) for count in tokens])
    assert logger.series("train/throughput/groups_per_second") == pytest.approx([4.0, 4.0])
    assert logger.series("train/throughput/padding") == [0.0, 0.0]
    weights = sum(p.numel() for p in module.policy.parameters())
    assert logger.series("train/throughput/mfu")[0] == pytest.approx(tokens[0] * 8 * weights / 1e12, rel=1e-5)
    assert 0.01 < logger.series("train/memory/peak_gib")[0] < 100


def test_throughput_does_not_count_validation(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rlhf_lightning.callbacks.throughput.time.perf_counter", lambda: now[0])

    class Time(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            now[0] += 2.0

        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
            now[0] += 100.0

    logger = Memory()
    run = trainer(tmp_path, [Time(), Throughput()], logger=logger, val_check_interval=1)
    run.fit(preference(), loader(3), loader(1))
    assert logger.series("train/throughput/groups_per_second") == pytest.approx([2.0] * 3)


def test_padding_of_the_padded_backend(tmp_path):
    logger = Memory()
    module = preference()
    module.configure_model()
    module.policy.backend = "padded"
    trainer(tmp_path, [Throughput()], logger=logger, max_steps=1).fit(module, loader(1))
    rows = [len(row.prompt) + len(response) for row in examples(4) for response in row.responses]
    expected = 1 - sum(rows) / (max(rows) * len(rows))
    assert logger.series("train/throughput/padding")[0] == pytest.approx(expected, rel=1e-5)


def test_outputs_stay_ragged():
    """The contract the callbacks rely on: numbers a token are in the batch's own order."""
    module = preference()
    module.configure_model()
    batch = micro_batches(examples(3), 1)[0]
    output = module(batch)
    assert isinstance(module.policy(batch), SequenceLogProbs)
    assert output.diagnostics["log_ratio"].shape == batch.sequence.shape


def test_the_rewards_of_every_pair_are_kept(tmp_path):
    """In the order of the data set; their means are the logged ones. Wrong order or float16 would fail."""
    module = preference(partial(dpo, beta=0.5), lr=0.3)
    logger = run(tmp_path, module, ImplicitRewards(), val=loader(3, batch=6))
    kept = np.load(tmp_path / "implicit_rewards.npz")
    assert kept["index"].tolist() == sorted(kept["index"].tolist())
    assert len(kept["chosen"]) == len(kept["rejected"]) == len(kept["index"]) >= 6
    assert int(kept["step"]) == 2
    for name in ("chosen", "rejected"):
        assert float(kept[name].mean()) == pytest.approx(logger.series(f"val/reward/{name}")[-1], abs=1e-5)
    assert not list(tmp_path.glob(".*unfinished"))
