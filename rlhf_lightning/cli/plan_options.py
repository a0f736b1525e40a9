"""Options of ``rlhf plan`` beside those of ``rlhf train``. Imports neither torch nor Hydra: completion reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from rlhf_lightning.cli.errors import ConfigError

_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_UNITS |= {f"{unit}iB": float(2 ** (10 * power)) for power, unit in enumerate("KMGT", 1)}
_UNITS |= {f"{unit}B": 1000.0**power for power, unit in enumerate(("k", "M", "G", "T"), 1)}


@dataclass(frozen=True)
class Options:
    """Options of the command beside those of ``rlhf train``; ``None``: measured, or not limited."""

    devices: float = 1
    device_memory: float | None = None
    flops: float | None = None
    bandwidth: float | None = None
    efficiency: float = 0.4
    link: float | None = None
    prompt_tokens: float = 256
    response_tokens: float | None = None


OPTIONS = tuple(field.name for field in fields(Options))


def read_options(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """The command's options, and the overrides of the job.

    Raises:
        ConfigError: a value is no positive number, with or without a unit.
    """
    given: dict[str, float] = {}
    rest = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name not in OPTIONS:
            rest.append(argument)
            continue
        given[name] = _number(name, value)
    options = Options(**given)
    for name in ("devices", "prompt_tokens", "response_tokens"):
        if (count := getattr(options, name)) is not None and count != int(count):
            raise ConfigError(f"{name}={count:g} must be a whole number")
    if options.efficiency > 1:
        raise ConfigError(f"efficiency={options.efficiency:g} is the share of flops that a step reaches: at most 1")
    return options, rest


def _number(name: str, text: str) -> float:
    match = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?) *([A-Za-z]*)", text)
    if match is None or match[2] not in _UNITS or match[1].count(".") > 1 or not float(match[1]) > 0:
        raise ConfigError(f"{name}={text}: give a positive number, such as 8, 989e12, 989T or 80GiB")
    return float(match[1]) * _UNITS[match[2]]
