"""Settings of a job's threads, seen from outside: in the environment and in what arithmetic gives."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from rlhf_lightning.cli.threads import WAITING, flushed_denormals, let_waiting_threads_sleep

SMALLEST = torch.tensor(1e-38)


def test_waiting_threads_sleep_unless_the_user_has_decided():
    environment: dict[str, str] = {}
    let_waiting_threads_sleep(environment)
    assert environment == WAITING
    for given in ({"OMP_WAIT_POLICY": "ACTIVE"}, WAITING | {"GOMP_SPINCOUNT": "7"}):
        kept = dict(given)
        let_waiting_threads_sleep(kept)
        assert kept == given


def test_the_command_decides_before_torch_is_imported():
    """OpenMP reads the variable once, as its library is loaded."""
    script = (
        "import os, sys; from rlhf_lightning.cli.main import main; main(['--version'])\n"
        "sys.stderr.write(os.environ['GOMP_SPINCOUNT'])"
    )
    clean = {name: value for name, value in os.environ.items() if name not in (*WAITING, "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=clean)
    assert done.stderr == WAITING["GOMP_SPINCOUNT"]


def test_denormals_are_0_while_a_job_runs():
    with flushed_denormals():
        with flushed_denormals():
            assert SMALLEST * 0.1 == 0
        assert SMALLEST * 0.1 == 0, "a job inside another ends the outer one's setting"
    assert SMALLEST * 0.1 > 0
