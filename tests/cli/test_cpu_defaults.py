"""Settings of a job on a CPU, seen from outside: in the environment and in what arithmetic gives."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from rlhf_lightning.cli.cpu_defaults import KERNELS, WAITING, flushed_denormals, set_cpu_defaults

SMALLEST = torch.tensor(1e-38)


def test_what_the_user_has_set_stays():
    environment: dict[str, str] = {}
    set_cpu_defaults(environment)
    assert environment == WAITING | KERNELS
    environment = {"GOMP_SPINCOUNT": "7", "LRU_CACHE_CAPACITY": "9"}
    set_cpu_defaults(environment)
    assert environment == WAITING | KERNELS | {"GOMP_SPINCOUNT": "7", "LRU_CACHE_CAPACITY": "9"}


def test_a_user_who_decides_how_threads_wait_decides_all_of_it():
    """GNU's runtime lets its own variable win over the standard one."""
    environment = {"OMP_WAIT_POLICY": "ACTIVE"}
    set_cpu_defaults(environment)
    assert environment == KERNELS | {"OMP_WAIT_POLICY": "ACTIVE"}


def test_the_command_decides_before_torch_is_imported():
    """The libraries read their variables once, as they are loaded."""
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
