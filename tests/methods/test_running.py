"""Running moments: exact merging, no bias at the start, equal on every process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from rlhf_lightning.methods.running import RunningMoments
from tests.helpers.jobs import ranks

STEPS = [[1.0, 3.0], [10.0], [], [-2.0, 0.0, 5.0, 5.0]]


def test_cumulative_moments_are_those_of_all_numbers():
    running = RunningMoments()
    for step in STEPS:
        running.update(torch.tensor(step))
    every = torch.tensor([x for step in STEPS for x in step])
    moments = running.moments()
    torch.testing.assert_close(moments.mean, every.mean())
    torch.testing.assert_close(moments.std, every.std(correction=0))
    assert moments.count == 7


def test_average_by_hand():
    """Steps [1, 3] and [10, 14, 18] with decay 0.9: weights 0.09 and 0.1 of 0.19; fails without the division by 0.19.

    The deviations of the steps are sqrt(2) and 4; fails when the distance of their means, 2 and 14, enters.
    """
    running = RunningMoments(decay=0.9)
    running.update(torch.tensor([1.0, 3.0]))
    first = running.moments()
    assert float(first.std) == pytest.approx(2**0.5)  # unbiased at once: nothing is pulled to zero
    assert (first.mean, first.count) == (2.0, 2.0)
    running.update(torch.tensor([10.0, 14.0, 18.0]))
    moments = running.moments()
    assert float(moments.mean) == pytest.approx((0.09 * 2 + 0.1 * 14) / 0.19, rel=1e-5)
    assert float(moments.std) == pytest.approx((0.09 * 2**0.5 + 0.1 * 4) / 0.19, rel=1e-5)


def test_averages_are_those_of_alpha_dpo_but_for_their_start():
    """The authors' constants, c = 0.9 c + 0.1 (mean or torch.std of a batch) from 0, divided by 1 - 0.9^k."""
    running, mean, std = RunningMoments(decay=0.9), 0.0, 0.0
    for step, batch in enumerate(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).cumsum(0), start=1):
        running.update(batch)
        mean, std = 0.9 * mean + 0.1 * batch.mean().item(), 0.9 * std + 0.1 * batch.std().item()
        moments, share = running.moments(), 1 - 0.9**step
        assert float(moments.mean) == pytest.approx(mean / share, rel=1e-5)
        assert float(moments.std) == pytest.approx(std / share, rel=1e-5)


def test_a_step_of_one_number_has_no_spread():
    running = RunningMoments(decay=0.5)
    running.update(torch.tensor([4.0]))
    assert (running.moments().mean, running.moments().std) == (4.0, 0.0)


def test_no_observations_change_nothing():
    running = RunningMoments(decay=0.5)
    running.update(torch.tensor([4.0]))
    running.update(torch.tensor([]))
    assert (float(running.mean), float(running.count)) == (4.0, 1.0)


def test_what_a_loss_sees_does_not_move_with_the_state():
    running = RunningMoments()
    running.update(torch.tensor([1.0]))
    seen = running.moments()
    running.update(torch.tensor([3.0]))
    assert float(seen.mean) == 1.0


def test_half_precision_does_not_reach_the_counts():
    """257 is no bfloat16 number; fails when the buffers follow ``module.to(dtype)``."""
    running = RunningMoments()
    running.update(torch.arange(257.0))
    running.to(torch.bfloat16)
    assert running.count == 257
    assert running.mean.dtype == torch.float32


def test_state_is_saved():
    running, other = RunningMoments(0.9), RunningMoments(0.9)
    running.update(torch.tensor([1.0, 5.0]))
    other.load_state_dict(running.state_dict())
    for moments in (running, other):
        moments.update(torch.tensor([7.0]))
    assert torch.equal(running.moments().std, other.moments().std)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match="running_decay"):
        RunningMoments(decay)


def _two_processes(folder, decay):
    dist.init_process_group("gloo")
    running = RunningMoments(decay)
    for step in ([[1.0, 3.0], [10.0]], [[], [-2.0, 0.0, 5.0, 5.0]]):
        running.update(torch.tensor(step[dist.get_rank()]))
    torch.save(running.state_dict(), folder / f"{dist.get_rank()}.pt")


@pytest.mark.parametrize("decay", [None, 0.9])
def test_processes_are_pooled(tmp_path, decay):
    """One process that sees everything has the same state; fails when each keeps its own, or means are averaged."""
    assert ranks(2, _two_processes, tmp_path, decay) == [0, 0]
    alone = RunningMoments(decay)
    for step in ([1.0, 3.0, 10.0], [-2.0, 0.0, 5.0, 5.0]):
        alone.update(torch.tensor(step))
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt")
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6, msg=name)
