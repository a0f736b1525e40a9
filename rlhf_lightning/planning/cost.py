"""Cost of a job under a strategy: memory, seconds, tokens a second, steps a day."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.planning.job import Job, Strategy
from rlhf_lightning.planning.memory import Memory, memory_of
from rlhf_lightning.planning.operations import Operations, operations_of
from rlhf_lightning.planning.rates import Rates

DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Cost:
    """Cost of an optimiser step.

    Attributes:
        strategy: how it is divided.
        devices: processes that take part.
        memory: of one process.
        operations: of all processes.
        seconds: of a step by part: ``training``, ``reference``, ``scoring``, ``drawing``, ``communication``.
        tokens: of a step, every prompt once with its responses.
    """

    strategy: Strategy
    devices: int
    memory: Memory
    operations: Operations
    seconds: dict[str, float]
    tokens: int

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens a second, all processes together."""
        return self.tokens / self.step

    @property
    def steps_per_day(self) -> float:
        """Optimiser steps in 24 hours."""
        return DAY / self.step


def plan(job: Job, strategy: Strategy, devices: int, rates: Rates) -> Cost:
    """Count the cost of a job.

    Args:
        job: what is trained.
        strategy: how it is divided; ``single`` is one process whatever ``devices`` says.
        devices: processes, each with a device of its own.
        rates: of one device.
    """
    devices = 1 if strategy == "single" else devices
    operations = operations_of(job)
    sustained = rates.flops * rates.efficiency
    busy = min(devices, max(job.groups, 1))  # a process without a group waits
    shares = {
        "training": operations.training / sustained / busy,
        "reference": operations.reference / sustained / busy,
        "scoring": operations.scoring / sustained / busy,
        "drawing": operations.prefill / sustained / busy + _decoding(job, busy, rates),
        "communication": _communication(job, strategy, devices, rates),
    }
    seconds = {name: value for name, value in shares.items() if value}
    return Cost(strategy, devices, memory_of(job, strategy, devices), operations, seconds, job.tokens)


def _decoding(job: Job, devices: int, rates: Rates) -> float:
    """Seconds of decoding, of the steps that learn from a rollout one: the longer of computing and reading.

    Each token of a batch reads every weight once and the keys and values so far (arXiv:2211.05102, section 2).
    """
    if job.draws is None:
        return 0.0
    draws, shape = job.draws, job.shape
    rows = -(-job.groups * draws.minibatches // devices) * draws.responses
    batch = min(rows, draws.batch)
    batches = -(-rows // batch)
    weights = (shape.matrices + shape.head) * (draws.copy_bytes or job.weight_bytes)
    cache = batch * (job.prompt + job.response / 2) * shape.cache_numbers * draws.cache_bytes
    reading = (weights + cache) / rates.bandwidth
    scores = 4.0 * shape.layers * shape.heads * shape.head_width * (job.prompt + job.response / 2)
    computing = batch * (2.0 * (shape.matrices + shape.head) + scores) / (rates.flops * rates.efficiency)
    return batches * job.response * max(reading, computing) / (draws.epochs * draws.minibatches)


def _communication(job: Job, strategy: Strategy, devices: int, rates: Rates) -> float:
    """Seconds of a step in which devices send: a ring's reductions and gathers, none of them hidden.

    DDP reduces gradients: 2 (n - 1) / n of their bytes. FSDP2 gathers weights in the forward and the backward pass of
    every micro-batch and of each reference pass, and reduces gradients once (arXiv:1910.02054, section 7).
    """
    if rates.link is None or devices == 1:
        return 0.0
    share = (devices - 1) / devices
    gradients = job.models * job.shape.trainable * job.trained_bytes
    if strategy == "ddp":
        return 2 * share * gradients / rates.link
    width = 4 if job.precision == "float32" else 2
    passes = job.accumulate * (2 * job.models + (job.reference != "none"))
    return share * (passes * job.shape.parameters * width + gradients) / rates.link
