"""Declarations of a pure function: the inputs it needs and the range of each of its options.

Losses (``losses/options.py``), credit assignment (``credit/options.py``) and selectors (``selection/options.py``) are
such functions, or ``functools.partial`` objects of them, as a yaml makes them. Positional parameters are inputs,
keyword-only parameters are options, and an option's allowed values are part of its annotation::

    @loss_function
    def dpo(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> PreferenceLoss: ...

Options that belong together are a value object (:class:`Options`): a frozen dataclass that a yaml gives as a mapping.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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
#: What every random number generator of a run takes: NumPy's takes 32 bits.
Seed = Annotated[int, Range("[0, 4294967295]")]
#: A whole number from 1.
Count = Annotated[int, Range("[1, inf)")]
Real = Annotated[float, Range("(-inf, inf)")]
Positive = Annotated[float, Range("(0, inf)")]
AboveOne = Annotated[float, Range("(1, inf)")]
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


@dataclass(frozen=True)
class Declared:
    """A kind of declared function: what it is called in messages, where it stands in a yaml, what it may ask for.

    Attributes:
        noun: ``loss``, ``credit function`` or ``selector``.
        node: its key in the configuration, such as ``method.loss``.
        inputs: what a function may ask for by name, and what each of them is.
    """

    noun: str
    node: str
    inputs: Mapping[str, str]

    def function(self, function: Callable[P, R]) -> Callable[P, R]:
        """Mark a function (``declares``): each call checks the given options against the ranges in their annotations.

        A whole number given for a real one (``beta=1`` on the command line) becomes a float.
        """

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, hint in _option_hints(function).items():
                if name in kwargs:
                    kwargs[name] = self._allowed(function.__name__, name, kwargs[name], hint)
            return function(*args, **kwargs)

        vars(checked)["declares"] = self.noun
        return checked

    def needs(self, function: Callable[..., Any]) -> frozenset[str]:
        """The inputs that a function asks for; not those that have a default (:meth:`takes`).

        Args:
            function: a function, a partial of one, or an object that says it itself in an attribute ``needs``.

        Raises:
            ValueError: a positional parameter is no known input.
        """
        declared = getattr(function, "needs", None)
        if declared is not None:
            return frozenset(declared)
        return frozenset(p.name for p in self._parameters(function) if p.default is p.empty)

    def takes(self, function: Callable[..., Any]) -> frozenset[str]:
        """The inputs that a function can use: those that it needs and those that an option of it may ask for."""
        if hasattr(function, "needs"):
            return self.needs(function)
        return frozenset(p.name for p in self._parameters(function))

    def validate(self, function: Callable[..., Any]) -> None:
        """Check a function before anything expensive happens: its options, none missing, every value in its range.

        Args:
            function: a function, a partial of one, or an object with a method ``validate`` of its own.

        Raises:
            ValueError: the message names the function, the option and what is allowed.
        """
        validate = getattr(function, "validate", None)
        if validate is not None:
            validate()
            return
        self.needs(function)
        plain, set_options = unwrap(function)
        options = {p.name: p for p in inspect.signature(plain).parameters.values() if p.kind is p.KEYWORD_ONLY}
        for name in set_options:
            if name not in options:
                close = difflib.get_close_matches(name, options, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise ValueError(
                    f"{self.noun} {plain.__name__} has no option {name!r}{hint}; its options are {sorted(options)}"
                )
        missing = [name for name, p in options.items() if p.default is p.empty and name not in set_options]
        if missing:
            raise ValueError(
                f"{self.noun} {plain.__name__} needs a value for {missing}: set {self.node}.{missing[0]}=..."
            )
        hints = _option_hints(plain)
        for name, value in set_options.items():
            self._allowed(plain.__name__, name, value, hints.get(name, Any))

    def _parameters(self, function: Callable[..., Any]) -> list[inspect.Parameter]:
        plain, set_options = unwrap(function)
        parameters = inspect.signature(plain).parameters.values()
        inputs = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in set_options]
        unknown = sorted({p.name for p in inputs} - self.inputs.keys())
        if unknown:
            raise ValueError(
                f"{self.noun} {plain.__name__} asks for {unknown}, which no method provides. Inputs are "
                f"{sorted(self.inputs)}; an option must be keyword-only: write it after the * of the signature"
            )
        return inputs

    def _allowed(self, function: str, name: str, value: Any, hint: Any) -> Any:
        """The value as the annotation wants it; ValueError if it cannot be. Other annotations allow anything."""
        value, wanted = fitted(value, hint)
        if wanted is not None:
            raise ValueError(f"{self.noun} {function}: {name}={value!r} is not allowed, it must be {wanted}")
        return value


def fitted(value: Any, hint: Any) -> tuple[Any, str | None]:
    """A value as an annotation wants it, and None; or the value, and in words what it would have to be.

    Annotations without a range, choices or a truth value allow anything.
    """
    if type(None) in get_args(hint):  # "Positive | None"
        others = [arm for arm in get_args(hint) if arm is not type(None)]
        return (value, None) if value is None or len(others) != 1 else fitted(value, others[0])
    if get_origin(hint) is Annotated:
        interval = next((extra for extra in get_args(hint)[1:] if isinstance(extra, Range)), None)
        if interval is not None:
            kind = int if get_args(hint)[0] is int else float
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and float(value) in interval and kind(value) == value:
                return kind(value), None
            return value, f"a {'whole ' if kind is int else ''}number in {interval}"
    elif get_origin(hint) is Literal and value not in get_args(hint):
        return value, f"one of {list(get_args(hint))}"
    elif hint is bool and not isinstance(value, bool):
        return value, "true or false"
    return value, None


@dataclass(frozen=True)
class Options:
    """Base of value objects: options of one idea, each held against its annotation, as those of functions are."""

    node: ClassVar[str]  #: key in the configuration, for messages

    def __post_init__(self) -> None:
        kind: Any = type(self)
        hints = _field_hints(kind)
        for field in fields(self):
            value, wanted = fitted(getattr(self, field.name), hints[field.name])
            if wanted is not None:
                null = " or null" if type(None) in get_args(hints[field.name]) else ""
                raise ValueError(f"{self.node}.{field.name}={value!r} is not allowed, it must be {wanted}{null}")
            object.__setattr__(self, field.name, value)


def value_object(kind: type[T], given: T | Mapping[str, Any] | None, node: str) -> T:
    """A value object that is given as it is, or by the names of its options as in a yaml; None: all of them defaults.

    Args:
        kind: its class, a dataclass.
        given: the object or its options.
        node: where it stands in the configuration, for messages.

    Raises:
        ValueError: it is neither, a name is none of its options, or see the class.
    """
    if given is not None and not isinstance(given, Mapping):
        if not isinstance(given, kind):
            raise ValueError(f"{node}={given!r} is not allowed, it must be options by name")
        return given
    options = given or {}
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in options:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise ValueError(f"{node}.{name} is no option. {hint}There are {', '.join(names)}")
    return kind(**options)


def option_values(function: Callable[..., Any], name: str) -> list[Any]:
    """Values of a function's option, given or by default: one value, one for each term of a sum, or none."""
    terms = getattr(function, "losses", None)
    if terms is not None:
        return [value for term in terms.values() for value in option_values(term, name)]
    plain, set_options = unwrap(function)
    parameter = inspect.signature(plain).parameters.get(name)
    return [] if parameter is None else [set_options.get(name, parameter.default)]


def real_options(function: Callable[..., Any]) -> frozenset[str]:
    """Names of a function's options that are real numbers; none of a sum of functions, whose terms have their own."""
    plain, _ = unwrap(function)
    if hasattr(plain, "losses"):
        return frozenset()
    return frozenset(name for name, hint in _option_hints(plain).items() if _is_real(hint))


def unwrap(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A function and the options that a partial of it was given; of a partial of a partial, the outer one's count."""
    plain: Any = function
    set_options: dict[str, Any] = {}
    while isinstance(plain, functools.partial):
        plain, set_options = plain.func, {**plain.keywords, **set_options}
    return plain, set_options


def _is_real(hint: Any) -> bool:
    """Check whether an annotation is a real number, perhaps in an interval, perhaps optional."""
    arms = [arm for arm in get_args(hint) if arm is not type(None)] if type(None) in get_args(hint) else [hint]
    return [get_args(arm)[0] if get_origin(arm) is Annotated else arm for arm in arms] == [float]


@functools.cache
def _option_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotation of each keyword-only parameter, with the ranges in it."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in hints}


@functools.cache
def _field_hints(kind: type) -> dict[str, Any]:
    """Annotation of each field of a dataclass, with the ranges in it."""
    return get_type_hints(kind, include_extras=True)
