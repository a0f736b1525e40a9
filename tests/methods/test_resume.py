"""Learning rates of a run that is resumed with another length or other options."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from rlhf_lightning import schedules
from rlhf_lightning.methods.optimizers import make_scheduler
from rlhf_lightning.methods.resume import check_options, lengthen, options_of, report_early_end


def begun(schedule, total: int, steps: int, **options):
    """An optimiser and its schedule after some steps of a run; the rates of these steps."""
    weights = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.5, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, **{"lr": 1.0, "weight_decay": 0.1} | options)
    scheduler = make_scheduler(schedule, optimizer, lambda: total)
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler, rates


def resumed(schedule, before: int, now: int):
    """Optimiser and schedule of a run, with the states that another one's first five steps left."""
    saved, state, _ = begun(schedule, before, 5)
    optimizer, scheduler, _ = begun(schedule, now, 0)
    optimizer.load_state_dict(saved.state_dict())
    scheduler.load_state_dict(state.state_dict())
    return optimizer, scheduler


EXACT = {
    "constant": partial(schedules.constant),
    "warm-up in steps": partial(schedules.constant, warmup=2),
    "inverse_sqrt": partial(schedules.inverse_sqrt, warmup=2),
    "cosine with its length": partial(schedules.cosine, total_steps=12),
    "still in the warm-up": partial(schedules.linear, warmup=5),
}
OTHER = {
    "cosine": partial(schedules.cosine),
    "linear": partial(schedules.linear),
    "warm-up as a share": partial(schedules.constant, warmup=0.5),
    "torch's cosine": partial(torch.optim.lr_scheduler.CosineAnnealingLR),
    "torch's one cycle": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=2.0),
}


@pytest.mark.parametrize("name", [*EXACT, *OTHER])
def test_the_rest_has_the_rates_of_the_longer_run(name):
    """Five steps of a run of five, then of one of twelve: the first added step had rate 0 before."""
    schedule = (EXACT | OTHER)[name]
    optimizer, scheduler = resumed(schedule, 5, 12)
    differing = lengthen(schedule, scheduler, before=5, now=12, done=5)
    assert (differing == 0) == (name in EXACT)
    rates = []
    for _ in range(7):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert rates == begun(schedule, 12, 12)[2][5:]
    assert rates[0][0] > 0


def test_a_checkpoint_without_its_length():
    """Those of earlier versions: the rate of the next step tells whether anything changed."""
    for total, differing in ((5, 5), (12, 0)):
        _, scheduler = resumed(schedules.cosine, total, 12)
        assert lengthen(schedules.cosine, scheduler, before=None, now=12, done=5) == differing


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": 2.0}, r"optimizer\.lr is 2, and the checkpoint's optimiser has 1"),
        ({"weight_decay": 0.2}, r"optimizer\.weight_decay is 0\.2, and the checkpoint's optimiser has 0\.1"),
    ],
)
@pytest.mark.parametrize("schedule", [partial(schedules.cosine), partial(schedules.constant)])
def test_options_that_a_checkpoint_would_replace(schedule, options, text):
    """Loading an optimiser's state puts its options back: a new learning rate was ignored without a word."""
    saved, _, _ = begun(schedule, 8, 3)
    optimizer, _, _ = begun(schedule, 8, 0, **options)
    configured = options_of(optimizer)
    optimizer.load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match=text):
        check_options(configured, optimizer)


def test_the_same_options_pass():
    saved, _, _ = begun(schedules.cosine, 8, 3)
    optimizer, _, _ = begun(schedules.cosine, 8, 0)
    configured = options_of(optimizer)
    optimizer.load_state_dict(saved.state_dict())
    check_options(configured, optimizer)


def test_a_schedule_that_ends_before_the_run(caplog):
    """Steps of rate 0 by an option that was meant for a shorter run."""
    for steps, text in ((8, ""), (9, "scheduler.total_steps=8 ends before the run of 9 steps")):
        report_early_end(partial(schedules.linear, total_steps=8), steps)
        assert text in caplog.text
        assert bool(text) == bool(caplog.text)
