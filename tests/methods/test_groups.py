"""The modules of labelled responses and of ranked lists: what they give a loss, and what they log."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from rlhf_lightning import losses
from rlhf_lightning.callbacks import ImplicitRewards, LogRatios, NonFiniteStop, ResponseStatistics
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses.options import loss_function
from rlhf_lightning.methods import Preference, Ranked, Supervised, Unpaired
from rlhf_lightning.options import Positive
from rlhf_lightning.types import Example, PackedBatch, Ragged
from tests.helpers.jobs import Memory
from tests.helpers.kinds import EXAMPLES, mismatched, step
from tests.helpers.training import Bigram, Builder, trainer

SGD = partial(torch.optim.SGD, lr=0.1)
KL = "diagnostic/log_ratio/mismatched"


def built(method: type, loss: Any, reference: str = "frozen") -> Any:
    """A module whose policy has left its reference."""
    module = method(Builder(reference), loss, SGD)
    module.configure_model()
    with torch.no_grad():
        module.policy.head.bias += torch.linspace(-0.5, 0.5, len(module.policy.head.bias))
    return module


def log_ratios(module: Any, batch: PackedBatch) -> torch.Tensor:
    with torch.no_grad():
        return module.policy(batch).sum() - Bigram()(batch).sum()


def logged(module: Any, batches: list[PackedBatch], folder: Any, **options: Any) -> Memory:
    """Train on given micro-batches and keep what is logged."""
    logger = Memory()
    callbacks = [ImplicitRewards(), ResponseStatistics(), LogRatios(), NonFiniteStop()]
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer(folder, callbacks, logger=logger, **options).fit(module, loader)
    return logger


@loss_function
def weighed(policy: Ragged, *, weight: Positive = 1.0) -> torch.Tensor:
    """A loss of a user on demonstrations."""
    return -weight * policy.mean()


@pytest.mark.parametrize(
    ("method", "kind", "loss", "changed"),
    [
        (Preference, "preference", losses.dpo, {"beta": 5.0}),
        (Unpaired, "unpaired", losses.kto, {"beta": 5.0}),
        (Ranked, "ranked", losses.rrhf, {"nll_weight": 3.0}),
        (Supervised, "supervised", weighed, {"weight": 3.0}),
    ],
)
def test_a_batch_brings_options_of_its_loss(method: type, kind: str, loss: Any, changed: dict[str, float]) -> None:
    """To the last bit the loss that has them itself; the method's own stays for other batches."""
    module, given = built(method, loss), built(method, partial(loss, **changed))
    batch, _ = step(kind, 6, parts=2)
    brought = replace(batch, loss_options=changed)
    expected, output = given(batch), module(brought)
    assert torch.equal(output.loss, expected.loss)
    for name, value in expected.diagnostics.items():
        assert torch.equal(output.diagnostics[name], value), name
    assert not torch.equal(module(batch).loss, expected.loss)
    assert torch.equal(module(brought.emptied()).loss, torch.zeros(()))


def test_the_reference_point_is_the_mean_over_all_mismatched_rows() -> None:
    """By hand from the models; fails for a mean of means, for the rows of the data, and without the clamp."""
    module = built(Unpaired, losses.kto)
    rows = EXAMPLES["unpaired"](6)
    first, second = step("unpaired", 6, parts=2)
    uneven = tuple(mismatched(rows, 6, first.totals)) + tuple(mismatched(rows[:2], 2, first.totals))
    ratios = torch.cat([log_ratios(module, batch) for batch in uneven])
    expected = ratios.mean().clamp(min=0).item()
    brought = replace(first, mismatched=uneven)
    assert module(brought).diagnostics[KL].item() == pytest.approx(expected, rel=1e-5)
    assert module(second).diagnostics[KL].item() == pytest.approx(expected, rel=1e-5), "the whole step has one point"
    with torch.no_grad():
        module.policy.head.bias.mul_(-1)
    below = torch.cat([log_ratios(module, batch) for batch in uneven]).mean().item()
    assert module(brought).diagnostics[KL].item() == pytest.approx(max(0.0, below), rel=1e-5)
    assert min(below, -expected) < 0 <= max(below, expected)


def test_a_step_without_mismatched_rows_is_refused() -> None:
    module = built(Unpaired, losses.kto)
    batch = replace(step("unpaired", 4)[0], mismatched=())
    with pytest.raises(ValueError, match=r"first micro-batch has none.*method=apo_zero_unpaired"):
        module(batch)
    assert built(Unpaired, losses.apo_zero_unpaired)(batch).loss.isfinite()


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("loss", [losses.kto, losses.bco, losses.apo_zero_unpaired, losses.unlikelihood])
def test_steps_of_one_label_log_no_nan(loss: Any, label: float, tmp_path: Any) -> None:
    """Fails for a mean over nothing, in the loss or in what is logged."""
    batches = [replace(b, desirable=torch.full_like(b.desirable, label)) for b in step("unpaired", 6, parts=3)]
    logger = logged(Unpaired(Builder(), loss, SGD), batches, tmp_path, accumulate_grad_batches=3)
    names = {name for row in logger.rows for name in row}
    assert torch.tensor([value for row in logger.rows for value in row.values()]).isfinite().all()
    assert ("train/reward/chosen" in names, "train/reward/rejected" in names) == (label == 1.0, label == 0.0)
    assert "train/reward/margin" not in names
    assert logger.series("train/share/desirable") == [label]


def test_the_margin_is_that_of_the_means(tmp_path: Any) -> None:
    """Over micro-batches of other label counts; fails for a mean of the micro-batches' margins."""
    module = built(Unpaired, losses.apo_zero_unpaired)
    batches = step("unpaired", 6, parts=3)
    rewards = torch.cat([module(batch).diagnostics["reward"] for batch in batches])
    chosen = torch.cat([batch.desirable for batch in batches]) == 1
    logger = logged(module, batches, tmp_path, accumulate_grad_batches=3)
    margin = (rewards[chosen].mean() - rewards[~chosen].mean()).item()
    assert logger.series("train/reward/margin") == [pytest.approx(margin, rel=1e-4)]


def lists(*scores: list[float]) -> PackedBatch:
    """Lists whose responses are one, two, ... tokens long: the policy ranks by length where each token costs a nat."""
    rows = [
        Example([1], [[2] * (k + 1) for k in range(len(given))], row=f"lists:{i}", numbers={"score": given})
        for i, given in enumerate(scores)
    ]
    return pack(rows, kind="ranked")


def test_rank_statistics_by_hand() -> None:
    """Rewards are summed log-probs, so the shorter response has the higher one; one list is in order, one is not."""
    loss = partial(losses.plackett_luce, beta=1.0)
    module = built(Ranked, loss)

    def sums(policy: Any, reference: Any, score: Any, present: Any) -> Any:
        output = loss(policy, reference, score, present)
        output.reward = policy.sum().detach()
        return output

    module.loss = sums
    extras = module(lists([3.0, 2.0, 1.0], [1.0, 2.0, 2.0], [5.0], [1.0, 1.0])).diagnostics
    # list 2: the first is worse than the two others and ranked above both; the tie is no pair. 3 and 4 have no pairs.
    assert extras["diagnostic/rank/tau"].tolist() == [1.0, -1.0]
    assert extras["diagnostic/rank/violated"].tolist() == [0.0, 1.0]
    assert extras["chosen_length"].tolist() == [1.0, 2.5]
    assert extras["rejected_length"].tolist() == [3.0, 1.0]
    assert extras["length"].tolist() == [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 1.0, 2.0], "no empty slot is a response"


def test_lists_of_one_and_ties_log_no_nan(tmp_path: Any) -> None:
    for number, loss in enumerate([losses.pro, losses.rrhf, losses.plackett_luce, losses.exo_k, losses.best_of_n]):
        module = Ranked(Builder(), loss, SGD)
        logger = logged(module, [lists([1.0], [2.0]), lists([1.0, 1.0])], tmp_path / str(number))
        assert torch.tensor([value for row in logger.rows for value in row.values()]).isfinite().all()
        assert not logger.series("train/rank/tau")


def test_lists_of_two_train_like_pairs(tmp_path: Any) -> None:
    """Every rank metric of pairs has its counterpart: accuracy is 1 - violated, and tau its difference."""
    module = built(Ranked, partial(losses.plackett_luce, beta=0.5))
    logger = logged(module, step("ranked", 6), tmp_path)
    assert logger.series("train/rank/violated")[0] + logger.series("train/reward/accuracy")[0] <= 1.5
    assert -1 <= logger.series("train/rank/tau")[0] <= 1
    assert logger.series("train/loss/rank_1")


def test_log_ratios_count_responses_not_slots(tmp_path: Any) -> None:
    """Fails when the empty slots of shorter lists dilute the mean."""
    module = built(Ranked, losses.plackett_luce)
    batch = lists([1.0, 0.0, 2.0], [1.0])
    expected = log_ratios(module, batch)[batch.present].mean().item()
    assert logged(module, [batch], tmp_path).series("train/log_ratio/mean") == [pytest.approx(expected, rel=1e-4)]
