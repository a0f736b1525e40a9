"""Cluster environments that describe a job's processes to Lightning, which then guesses nothing."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from rlhf_lightning.cli.processes import Launch


class SrunEnvironment(ClusterEnvironment):
    """The tasks of a step of Slurm's ``srun``, all of which are processes of one job.

    Lightning's ``SLURMEnvironment`` takes any process of a Slurm job for one, wants ``SLURM_NTASKS_PER_NODE``, which
    ``srun --ntasks`` does not set, and requeues jobs with checkpoints of its own; here ``last.ckpt`` is resumed.

    Args:
        launch: of this process.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self.launch = launch

    @property
    def creates_processes_externally(self) -> bool:
        """Always: ``srun`` did."""
        return True

    @property
    def main_address(self) -> str:
        """``MASTER_ADDR``, else the first machine of the step."""
        nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``, else one that the step's tasks, and seldom those of another step, arrive at."""
        if port := os.environ.get("MASTER_PORT"):
            return int(port)
        job, step = (int(os.environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        return 15000 + (16 * job + step) % 15000

    @staticmethod
    def detect() -> bool:
        """Check whether Lightning should choose this by itself: it is given."""
        return False

    def world_size(self) -> int:
        """Tasks of the step."""
        return self.launch.processes

    def set_world_size(self, size: int) -> None:
        """Nothing: Slurm decided."""

    def global_rank(self) -> int:
        """Number of the task."""
        return self.launch.rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing: Slurm decided."""

    def local_rank(self) -> int:
        """Number of the task on its machine."""
        return self.launch.local_rank

    def node_rank(self) -> int:
        """Number of the machine in the step."""
        return int(os.environ.get("SLURM_NODEID", "0"))


def cluster_environment(launch: Launch) -> ClusterEnvironment:
    """Choose how the processes of a job find each other.

    Args:
        launch: of this process, see :func:`rlhf_lightning.cli.processes.processes`.
    """
    if launch.by == "torchrun":
        return TorchElasticEnvironment()
    return SrunEnvironment(launch) if launch.by == "srun" else LightningEnvironment()
