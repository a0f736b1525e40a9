"""``rlhf plan``: memory of a process, tokens a second and steps a day of a job, and which strategies fit a device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.console import OUT
from rlhf_lightning.cli.plan_options import Options, read_options

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rlhf_lightning.planning import Cost, Job, Rates


def main(arguments: Sequence[str]) -> int:
    """``rlhf plan [devices=N] [device_memory=80GiB] [flops=...] [key=value ...] [--json]``."""
    as_json = "--json" in arguments
    options, overrides = read_options([argument for argument in arguments if argument != "--json"])
    cfg = compose("train", overrides)
    from rlhf_lightning.cli.plan_job import job_of

    processor = _on_processor(cfg, options)
    response = None if options.response_tokens is None else int(options.response_tokens)
    job = job_of(cfg, int(options.prompt_tokens), response, processor=processor)
    rates, measured = rates_of(options, job)
    costs = costs_of(job, options, rates)
    if as_json:
        OUT.print_json(json.dumps(facts(job, options, rates, costs)))
    else:
        show(job, options, rates, costs, measured=measured)
    return 0


def _on_processor(cfg: DictConfig, options: Options) -> bool:
    """Return whether the job is one for a CPU: asked for, or there is nothing else and no device was described."""
    import torch

    chosen = cfg.trainer.get("accelerator")
    if chosen is not None:
        return str(chosen) == "cpu"
    return options.flops is None and options.device_memory is None and not torch.cuda.is_available()


def rates_of(options: Options, job: Job) -> tuple[Rates, bool]:
    """Rates as they were given; what was not is measured on this processor, which takes two seconds."""
    import torch

    from rlhf_lightning.planning import Rates, measured_rates

    flops, bandwidth = options.flops, options.bandwidth
    measured = flops is None or (bandwidth is None and job.draws is not None)
    if measured:
        dtype = torch.float32 if job.precision == "float32" else torch.bfloat16
        here = measured_rates(dtype)
        flops, bandwidth = flops or here[0], bandwidth or here[1]
    assert flops is not None
    return Rates(flops, bandwidth or float("inf"), options.efficiency, options.link), measured


def costs_of(job: Job, options: Options, rates: Rates) -> list[tuple[Cost, bool]]:
    """The cost of every strategy, without and with checkpointing, and whether that is switched on."""
    from rlhf_lightning.planning import Strategy, plan

    strategies = [name for name in get_args(Strategy) if name == "single" or options.devices > 1]
    return [
        (plan(replace(job, checkpointing=again), name, int(options.devices), rates), again)
        for name in strategies
        for again in (False, True)
    ]


def fits(cost: Cost, memory: float | None) -> bool:
    """Return whether what is counted fits into a device."""
    return memory is None or cost.memory.peak <= memory


def facts(job: Job, options: Options, rates: Rates, costs: Sequence[tuple[Cost, bool]]) -> dict[str, Any]:
    """Everything that the command computes, for ``--json``."""
    return {
        "parameters": job.shape.parameters + job.shape.adapter,
        "trainable": job.shape.trainable,
        "tokens_per_step": job.tokens,
        "rates": {
            "flops": rates.flops,
            "efficiency": rates.efficiency,
            "bandwidth": rates.bandwidth,
            "link": rates.link,
        }
        | ({"bandwidth": None} if rates.bandwidth == float("inf") else {}),
        "strategies": [
            {
                "strategy": cost.strategy,
                "gradient_checkpointing": again,
                "devices": cost.devices,
                "memory": cost.memory.parts() | {"peak": cost.memory.peak},
                "fits": fits(cost, options.device_memory),
                "operations": cost.operations.total,
                "seconds": cost.seconds | {"step": cost.step},
                "tokens_per_second": cost.tokens_per_second,
                "steps_per_day": cost.steps_per_day,
            }
            for cost, again in costs
        ],
    }


def show(job: Job, options: Options, rates: Rates, costs: Sequence[tuple[Cost, bool]], *, measured: bool) -> None:
    """Print the plan as tables."""
    from rich.table import Table

    from rlhf_lightning.models.memory import bytes_text, count_text

    shape = job.shape
    OUT.print(
        f"{count_text(shape.parameters + shape.adapter)} parameters, {count_text(shape.trainable)} trained; a step has "
        f"{job.groups} groups of a prompt ({job.prompt} tokens) and {job.responses} trained responses "
        f"({job.response} tokens): {job.tokens} tokens"
    )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("strategy", "devices", "memory", "fits", "seconds a step", "tokens a second", "steps a day"):
        table.add_column(column, no_wrap=True, justify="left" if column == "strategy" else "right")
    for cost, again in costs:
        table.add_row(
            cost.strategy + (" + checkpointing" if again else ""),
            str(cost.devices),
            bytes_text(cost.memory.peak),
            "-" if options.device_memory is None else "yes" if fits(cost, options.device_memory) else "no",
            f"{cost.step:.3g}",
            f"{cost.tokens_per_second:.4g}",
            f"{cost.steps_per_day:.4g}",
        )
    OUT.print(table)
    parts = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    parts.add_column("memory of a process")
    for cost, again in costs:
        parts.add_column(cost.strategy + (" + ckpt" if again else ""), justify="right", no_wrap=True)
    for name in dict.fromkeys(name for cost, _ in costs for name in cost.memory.parts()):
        parts.add_row(name, *(bytes_text(getattr(cost.memory, name)) for cost, _ in costs))
    OUT.print(parts)
    OUT.print(_assumed(rates, job, measured=measured))


def _assumed(rates: Rates, job: Job, *, measured: bool) -> str:
    """Sentences on what the seconds stand on and what is not counted."""
    parts = [f"{rates.flops:.3g} FLOP/s x {rates.efficiency:g}"]
    if job.draws is not None:
        parts.append(f"{rates.bandwidth:.3g} bytes read a second")
    if rates.link is not None:
        parts.append(f"{rates.link:.3g} bytes sent a second")
    sources = " (what was not given was measured on this processor)" if measured else ""
    missing = ["libraries, momentary buffers and the allocator's reserve"]
    missing += [] if rates.link is not None else ["communication (link=)"]
    missing += [] if job.draws is None else ["scoring of responses by a reward"]
    return f"Assumed: {', '.join(parts)}{sources}. Not counted: {'; '.join(missing)}."
