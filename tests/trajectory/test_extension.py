"""A run that was finished and is made longer ends with the bits of the run that was that long from the beginning."""

from __future__ import annotations

from functools import partial

import pytest

from rlhf_lightning.schedules import constant, cosine, linear
from tests.helpers import online
from tests.helpers.jobs import Memory, differences, final_state, fit


def steps(number: int) -> dict[str, int]:
    return {"max_steps": number, "max_epochs": -1}


def epochs(number: int) -> dict[str, int]:
    return {"max_steps": -1, "max_epochs": number}


def logged(*runs: Memory) -> dict[int, dict[str, float]]:
    """Metrics by step, of several parts of a run one after the other."""
    rows: dict[int, dict[str, float]] = {}
    for row in (row for run in runs for row in run.rows):
        rows.setdefault(row["step"], {}).update(row)
    return rows


def end(folder):
    """The last checkpoint, less how many validation batches an epoch has had, which only a progress bar reads."""
    state = final_state(folder)
    del state["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    return state


def extended(tmp_path, stages, **options):
    """Train whole, and stage after stage; the metrics and the end of both."""
    runs = []
    for name, lengths in (("whole", stages[-1:]), ("extended", stages)):
        logs = [Memory() for _ in lengths]
        for log, length in zip(logs, lengths, strict=True):
            fit(tmp_path / name, logger=log, **options, **length)
        runs.append((logged(*logs), end(tmp_path / name)))
    return runs


#: An epoch has five steps; the checkpoint every second step is not always the last one.
STAGES = {
    "in the first epoch": [steps(3), steps(12)],
    "at the end of an epoch": [steps(5), steps(12)],
    "several times": [steps(3), steps(5), steps(10), steps(13), steps(15)],
    "epochs": [epochs(1), epochs(2), epochs(3)],
    "epochs, then steps, then epochs": [epochs(1), steps(7), epochs(3)],
    "nothing more at first": [steps(5), steps(5), epochs(2)],
}


OPTIONS = {
    "validated each epoch": {},
    "never validated": {"limit_val_batches": 0, "accumulate_grad_batches": 2},
    "epochs cut short": {"val_check_interval": 3, "limit_train_batches": 3},
}


@pytest.mark.parametrize(
    ("stages", "options"),
    [
        *(pytest.param(stages, OPTIONS["validated each epoch"], id=name) for name, stages in STAGES.items()),
        *(pytest.param(STAGES["several times"], options, id=name) for name, options in list(OPTIONS.items())[1:]),
    ],
)
def test_as_if_it_had_been_that_long(tmp_path, stages, options):
    """Batches, rates, metrics, weights, moments, average, reference and counters.

    Fails when the end counts the epoch as done (the rest of it is never seen), when a validation of the end is run
    again, or when a step's number is skipped.
    """
    (metrics, state), (parts, other) = extended(tmp_path, stages, schedule=constant, **options)
    assert list(parts) == list(metrics)
    assert parts == metrics
    assert differences(state, other) == []


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_a_schedule_with_its_own_length_is_exact(tmp_path, schedule):
    options = {"schedule": partial(schedule, total_steps=12)}
    (metrics, state), (parts, other) = extended(tmp_path, [steps(5), steps(12)], **options)
    assert parts == metrics
    assert differences(state, other) == []


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_a_schedule_without_a_length_follows_that_of_the_longer_run(tmp_path, schedule, caplog):
    """The steps before the end were taken with other rates, and that is reported."""
    caplog.set_level("WARNING", logger="rlhf_lightning")
    (metrics, _), (parts, _) = extended(tmp_path, [steps(5), steps(12)], schedule=schedule)
    rates = [[row["train/lr"] for row in log.values() if "train/lr" in row] for log in (metrics, parts)]
    assert len(rates[1]) == 12
    assert rates[0][5:] == rates[1][5:]
    assert rates[0][:5] != rates[1][:5]
    assert "the learning rates from step 6 on are those of a run of 12 steps, and 4 of the 5 steps" in caplog.text


def test_rollouts(tmp_path):
    """An on-policy run that ends in the inner epochs of a rollout."""
    for name, lengths in (("whole", [12]), ("extended", [5, 12])):
        for length in lengths:
            online.fit(tmp_path / name, max_steps=length, make=lambda: online.module_of(scheduler=constant))
    assert differences(end(tmp_path / "whole"), end(tmp_path / "extended")) == []
