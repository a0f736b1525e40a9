"""What a loss declares: the inputs it needs and the range of each of its options.

A loss is a function (or a ``functools.partial`` of one, as a yaml makes it). Its positional parameters are its inputs,
its keyword-only parameters are its options, and an option's allowed values are part of its annotation::

    @loss_function
    def dpo(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> PreferenceLoss: ...

``needs(dpo)`` is ``{"policy", "reference"}``, so that a method which never asks for a reference never loads one.
``validate(partial(dpo, beta=-1.0))`` raises before any weight is loaded; so does calling it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")

#: Inputs a loss may ask for, and what each one is.
INPUTS: Mapping[str, str] = {
    "policy": "log-probs of the model that is trained",
    "reference": "log-probs of the reference model",
    "margin": "score(chosen) - score(rejected) of each pair, from the data",
    "collision": "log sum_v p_v^2 of each scored token under the policy, detached",
    "top_k": "logits of the policy's most likely tokens at the negative tokens (undesirable or rejected responses)",
    "running": "running mean and standard deviation of what the loss observed in earlier steps",
    "desirable": "label of each response, 1 desirable and 0 undesirable",
    "kl": "reference point of KTO: mean log-ratio of mismatched prompts and responses over the step, at least 0",
    "weight": "weight of each response, from the density ratio of the prompts of both labels",
    "score": "score of each response of a list, higher is better; nan in an empty slot",
    "present": "whether each slot of a list holds a response",
    "reward": "scores of a scalar head: one a response, or one row a group where groups have several responses",
    "token_reward": "scores of a scalar head at every scored token",
    "length": "scored tokens of each response",
    "overlap": "absolute cosine between the rows of a head with several outputs, a scalar",
    "prefix": "scored tokens at the beginning that both responses of a pair share",
    "safe": "label of each response, 1 safe and 0 unsafe",
    "step_reward": "reward of each step of a solution, read at the step's last token",
    "step_label": "label of each step, 1 right and 0 wrong",
    "rating": "what a head of several outputs says of each response, one number an attribute",
    "attributes": "rating of each response by several attributes, from the data; nan where there is none",
    "verdict": "log-probs of a judge's right and wrong letter, the chosen response shown first",
    "verdict_swapped": "the same, the chosen response shown second",
    "embedding": "hidden state of each response, pooled at its last token or at its prompt's",
    "values": "what value heads say of each scored token and of the state it is chosen in",
}


@dataclass(frozen=True)
class Range:
    """An interval as it is written in mathematics: ``(0, inf)``, ``[0, 0.5)``."""

    text: str

    def __contains__(self, value: float) -> bool:
        low, high = (float(bound) for bound in self.text[1:-1].split(","))
        above = value > low if self.text[0] == "(" else value >= low
        below = value < high if self.text[-1] == ")" else value <= high
        return above and below

    def __str__(self) -> str:
        return self.text


#: A whole number from 0.
WholeNumber = Annotated[int, Range("[0, inf)")]
#: A whole number from 1.
Count = Annotated[int, Range("[1, inf)")]
Real = Annotated[float, Range("(-inf, inf)")]
Positive = Annotated[float, Range("(0, inf)")]
NonNegative = Annotated[float, Range("[0, inf)")]
Share = Annotated[float, Range("[0, 1]")]
#: Between 0 and 1, neither of them.
OpenShare = Annotated[float, Range("(0, 1)")]
#: Above 0 and at most 1.
PositiveShare = Annotated[float, Range("(0, 1]")]
#: Probability that a preference label is flipped.
FlipRate = Annotated[float, Range("[0, 0.5)")]
#: A flip rate whose logarithm is taken.
PositiveFlipRate = Annotated[float, Range("(0, 0.5)")]


def loss_function(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a loss: each call checks the given options against the ranges in their annotations.

    A whole number given for a real one (``beta=1`` on the command line) becomes a float.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, hint in _option_hints(function).items():
            if name in kwargs:
                kwargs[name] = _allowed(function.__name__, name, kwargs[name], hint)
        return function(*args, **kwargs)

    return checked


def needs(loss: Callable[..., Any]) -> frozenset[str]:
    """The inputs that a loss asks for, a subset of ``INPUTS``; not those that have a default (:func:`takes`).

    Args:
        loss: a function, a partial of one, or an object that says it itself in an attribute ``needs``.

    Raises:
        ValueError: a positional parameter is no known input.
    """
    declared = getattr(loss, "needs", None)
    if declared is not None:
        return frozenset(declared)
    return frozenset(p.name for p in _inputs(loss) if p.default is p.empty)


def takes(loss: Callable[..., Any]) -> frozenset[str]:
    """The inputs that a loss can use: those that it needs and those that an option of it may ask for."""
    return needs(loss) if hasattr(loss, "needs") else frozenset(p.name for p in _inputs(loss))


def _inputs(loss: Callable[..., Any]) -> list[inspect.Parameter]:
    function, given = _unwrap(loss)
    parameters = inspect.signature(function).parameters.values()
    inputs = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in given]
    unknown = sorted({p.name for p in inputs} - INPUTS.keys())
    if unknown:
        raise ValueError(
            f"loss {function.__name__} asks for {unknown}, which no method provides. Inputs are {sorted(INPUTS)}; "
            "an option must be keyword-only: write it after the * of the signature"
        )
    return inputs


def validate(loss: Callable[..., Any]) -> None:
    """Check a loss before anything expensive happens: known options, none missing, every value in its range.

    Args:
        loss: a function, a partial of one, or an object with a method ``validate`` of its own.

    Raises:
        ValueError: the message names the loss, the option and what is allowed.
    """
    own = getattr(loss, "validate", None)
    if own is not None:
        own()
        return
    needs(loss)
    function, given = _unwrap(loss)
    options = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for name in given:
        if name not in options:
            close = difflib.get_close_matches(name, options, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(
                f"loss {function.__name__} has no option {name!r}{hint}; its options are {sorted(options)}"
            )
    missing = [name for name, p in options.items() if p.default is p.empty and name not in given]
    if missing:
        raise ValueError(f"loss {function.__name__} needs a value for {missing}: set method.loss.{missing[0]}=...")
    hints = _option_hints(function)
    for name, value in given.items():
        _allowed(function.__name__, name, value, hints.get(name, Any))


def option_values(loss: Callable[..., Any], name: str) -> list[Any]:
    """What a loss has for an option, given or by default: one value, one for each term of a sum, or none."""
    terms = getattr(loss, "losses", None)
    if terms is not None:
        return [value for term in terms.values() for value in option_values(term, name)]
    function, given = _unwrap(loss)
    parameter = inspect.signature(function).parameters.get(name)
    return [] if parameter is None else [given.get(name, parameter.default)]


def _unwrap(loss: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    if isinstance(loss, functools.partial):
        return loss.func, dict(loss.keywords)
    return loss, {}


@functools.cache
def _option_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotation of each keyword-only parameter, with the ranges in it."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in hints}


def _allowed(loss: str, name: str, value: Any, hint: Any) -> Any:
    """The value as the annotation wants it; ValueError if it cannot be. Annotations other than ours allow anything."""
    if get_origin(hint) is Annotated:
        interval = next((extra for extra in get_args(hint)[1:] if isinstance(extra, Range)), None)
        if interval is not None:
            kind = int if get_args(hint)[0] is int else float
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and float(value) in interval and kind(value) == value:
                return kind(value)
            raise _refused(loss, name, value, f"a {'whole ' if kind is int else ''}number in {interval}")
    elif get_origin(hint) is Literal and value not in get_args(hint):
        raise _refused(loss, name, value, f"one of {list(get_args(hint))}")
    elif hint is bool and not isinstance(value, bool):
        raise _refused(loss, name, value, "true or false")
    return value


def _refused(loss: str, name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"loss {loss}: {name}={value!r} is not allowed, it must be {allowed}")
