"""Declarations of a selector: inputs, ranges of its options, and the kinds of data that its groups can be.

``needs(best_and_worst)`` is ``{"score", "truncated"}``. Of a selector whose input depends on an option
(``win_probability``), it is what the options ask for as they are set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlhf_lightning.options import Declared, option_values, unwrap

#: Inputs a selector may ask for, and what each one is. Everything holds the whole round, on the CPU, the same in every
#: process.
INPUTS: Mapping[str, str] = {
    "score": "combined reward of each sample, (prompts, samples); nan where the scorer gave none",
    "preference": "probability that sample i beats sample j, (prompts, samples, samples); nan: unknown, diagonal 0.5",
    "length": "of each sample, (prompts, samples): tokens with EOS, or characters (rounds.length_unit)",
    "truncated": "whether each sample was cut off at the length limit, (prompts, samples)",
    "same_as": "the prompt's first sample with the same text, DATA where that is the data's own response, "
    "(prompts, samples)",
    "source": "which draw of the round the samples are from, (samples,)",
    "generator": "seeded by the run's seed and the round: the only randomness",
}

SelectorT = TypeVar("SelectorT", bound=Callable[..., Any])

_SELECTOR = Declared("selector", "rounds.selector", INPUTS)
selector, takes, validate = _SELECTOR.function, _SELECTOR.takes, _SELECTOR.validate


@dataclass(frozen=True)
class _Made:
    """Declarations that :func:`makes` gives a selector."""

    kinds: frozenset[str] | None = None
    samples: int | str = 1
    asks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    sources: Sequence[Collection[str]] = ()


def makes(
    *kinds: str,
    samples: int | str = 2,
    asks: Mapping[str, Mapping[str, str]] | None = None,
    sources: Sequence[Collection[str]] = (),
) -> Callable[[SelectorT], SelectorT]:
    """Mark a selector with what its groups are and what it cannot do without.

    Args:
        kinds: of data that the groups can be.
        samples: fewest samples of a prompt that can give a group, or the option that says how many.
        asks: by option and value, the input that the selector then needs.
        sources: of the first draws of a round, which it tells apart, what each may be from; none: it does not.
    """

    def mark(function: SelectorT) -> SelectorT:
        function.__dict__["made"] = _Made(frozenset(kinds), samples, asks or {}, sources)
        return function

    return mark


def needs(function: Callable[..., Any]) -> frozenset[str]:
    """The inputs that a selector asks for with the options that it has.

    Args:
        function: a selector or a partial of one.

    Raises:
        ValueError: a positional parameter is no known input.
    """
    values = (
        (inputs, value) for option, inputs in _made(function).asks.items() for value in option_values(function, option)
    )
    return _SELECTOR.needs(function) | {inputs[value] for inputs, value in values if value in inputs}


def kinds(function: Callable[..., Any]) -> frozenset[str] | None:
    """The kinds of data that a selector's groups can be; None where it does not declare them."""
    return _made(function).kinds


def least_samples(function: Callable[..., Any]) -> int:
    """Fewest samples of a prompt that can give a group."""
    samples = _made(function).samples
    return samples if isinstance(samples, int) else int(option_values(function, samples)[0])


def sources(function: Callable[..., Any]) -> Sequence[Collection[str]]:
    """Allowed sources of each of a round's first draws; empty where the selector tells no draws apart."""
    return _made(function).sources


def _made(function: Callable[..., Any]) -> _Made:
    made: _Made = getattr(unwrap(function)[0], "made", _Made())
    return made
