"""Fits of hidden states with FSDP2 in two processes on the CPU: losses and training are those of one."""

from __future__ import annotations

import pytest

from tests.helpers.two_processes import failure


@pytest.mark.slow
def test_two_processes_fit_hidden_states_as_one_does():
    """The comparisons are in the job. A pass ends below the last block, which is a shard like the others."""
    assert failure("tests.models.sharded_states_job") == ""
