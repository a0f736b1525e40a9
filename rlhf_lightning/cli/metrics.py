"""Check that a run will log the metric to return, as far as that is known before it starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig

from rlhf_lightning.cli.errors import ConfigError

_INFINITE = float("inf")
#: Metrics that a callback of ours alone logs: its class, and what chooses it.
LOGGED_BY: tuple[tuple[str, str, str], ...] = (
    (r"val/gold/.+", "GoldReward", "callbacks=[default,gold] with model=tiny and data=tiny"),
    (r"val/sample/.+", "PolicySamples", "callbacks=[default,samples]"),
    (r"(train|val)/log_ratio/.+", "LogRatios", "callbacks=[default,log_ratios]"),
    (r"train/throughput/.+", "Throughput", "callbacks=[default,throughput]"),
    (r"train/grad_norm", "NonFiniteStop", "callbacks=[default,nonfinite]"),
)
#: Options that switch validation off, and a value that does not.
_SWITCHES = (
    ("data", "validation", (None, 0), "a share of the prompts (0.05) or a source"),
    ("trainer", "limit_val_batches", (0,), "1.0"),
)


def check_optimized(tree: Mapping[str, Any]) -> Iterator[str]:
    """Problems of ``optimized_metric``: a sweep would train all its jobs before it finds that there is no value.

    Args:
        tree: a resolved configuration of ``rlhf train``.
    """
    metric = str(tree.get("optimized_metric") or "")
    if not metric:
        return
    if not re.fullmatch(r"(train|val)/.+", metric):
        yield f"optimized_metric={metric}: names of metrics begin with train/ or val/, such as val/loss or train/loss"
    yield from _without_validation(metric, tree) if metric.startswith("val/") else ()


def check_logged(metric: str | None, callbacks: Mapping[str, Any] | None) -> None:
    """Refuse a metric that a callback logs which this run does not have.

    A job asks, not its sweep: a file of a sweep may name a metric whose callback comes with what it varies.

    Args:
        metric: ``optimized_metric``.
        callbacks: the nodes of the group.

    Raises:
        ConfigError: naming the choice that has the callback.
    """
    nodes = (callbacks or {}).values()
    targets = [str(node.get("_target_")) for node in nodes if isinstance(node, Mapping | DictConfig)]
    users = [target for target in targets if not target.startswith(("rlhf_lightning.", "lightning."))]
    for pattern, name, choice in LOGGED_BY:
        logged = any(target.endswith(f".{name}") for target in targets) or users
        if re.fullmatch(pattern, metric or "") and not logged:
            raise ConfigError(
                f"optimized_metric={metric} is logged by {name}, which this run does not have: choose {choice}"
            )


def _without_validation(metric: str, tree: Mapping[str, Any]) -> Iterator[str]:
    """A metric of validations in a run without any."""
    for section, option, off, fix in _SWITCHES:
        part = tree.get(section)
        if isinstance(part, dict) and option in part and part[option] in off:
            value = "null" if part[option] is None else part[option]
            yield (
                f"optimized_metric={metric} is logged in validations, and {section}.{option}={value} leaves none: set "
                f"it to {fix}, or optimise a metric of training, such as optimized_metric=train/loss"
            )


def check_reached(metric: str, trainer: Any, batches: int) -> None:
    """Refuse a metric of validations in a run that ends before its first one.

    Args:
        metric: ``optimized_metric``, of validations.
        trainer: Lightning's, with its limits.
        batches: micro-batches of an epoch.

    Raises:
        ConfigError: it does; the message says when the first validation would be.
    """
    if trainer.fast_dev_run:
        return
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    accumulate = trainer.accumulate_grad_batches
    steps = _INFINITE if trainer.max_steps == -1 else trainer.max_steps
    epochs = _INFINITE if trainer.max_epochs in (None, -1) else trainer.max_epochs
    last, first = min(steps * accumulate, epochs * batches), first_validation(trainer, batches)
    if first > last:
        raise ConfigError(
            f"optimized_metric={metric} is logged in validations, and this run ends after {last / accumulate:g} steps, "
            f"before its first one after {first / accumulate:g}: set trainer.val_check_interval and "
            "trainer.check_val_every_n_epoch so that one takes place, train longer, or optimise train/loss"
        )


def first_validation(trainer: Any, batches: int) -> int:
    """Micro-batches before the first validation, as Lightning counts them.

    Args:
        trainer: with ``val_check_interval`` and ``check_val_every_n_epoch``.
        batches: micro-batches of an epoch.
    """
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    within = interval if isinstance(interval, int) else max(1, int(batches * interval))
    return within if every is None else (every - 1) * batches + within
