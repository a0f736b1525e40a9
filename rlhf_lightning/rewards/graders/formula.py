"""Arithmetic over graders' scores: read with ``ast``, computed by our own walk over a closed set of nodes."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

#: Operators, and functions with the number of arguments that they take (None: at least one).
_BINARY: dict[type[ast.operator], Callable[[float, float], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int | None]] = {
    "min": (min, None),
    "max": (max, None),
    "abs": (abs, 1),
    "floor": (math.floor, 1),
    "ceil": (math.ceil, 1),
    "exp": (math.exp, 1),
    "sqrt": (math.sqrt, 1),
    "log": (math.log, 1),
}
#: Characters of a formula, and how deep its parts may be nested.
MAX_LENGTH, MAX_DEPTH = 2000, 200

_Node = Callable[[Mapping[str, float]], float]


class Formula:
    """A number made of numbers: ``+ - * /``, ``^`` or ``**``, and ``min max abs floor ceil exp sqrt log``.

    The operators, and ``^`` for a power, are those of OpenAI's ``calculate_output``. Everything is a 64-bit float.

    Args:
        text: the formula.
        names: that it may mention.
        where: the option that it stands under, for messages.

    Raises:
        ValueError: anything else stands in it.
    """

    def __init__(self, text: str, names: Collection[str], where: str = "calculate_output") -> None:
        self.text, self.where = text, where
        self._names = frozenset(names)
        self.used: set[str] = set()  #: names that the formula mentions
        if len(text) > MAX_LENGTH:
            raise self._wrong(f"it has {len(text)} characters, at most {MAX_LENGTH} are read")
        try:
            # ^ is Python's exclusive or, which binds more loosely than +; ** binds as a power does.
            tree = ast.parse(text.strip().replace("^", "**"), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._wrong(f"it is no formula: {error}") from None
        self._node = self._compiled(tree.body, 0)

    def __call__(self, values: Mapping[str, float]) -> float:
        """The formula's value.

        Args:
            values: of every name.

        Raises:
            ArithmeticError: division by zero, a root of a negative number, no finite value.
        """
        try:
            value = self._node(values)
        except (ValueError, TypeError, OverflowError) as error:
            raise ArithmeticError(f"{self.where}: {error}") from error
        if not math.isfinite(value):
            raise ArithmeticError(f"{self.where}: {value} is no finite number")
        return value

    def _compiled(self, node: ast.expr, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise self._wrong(f"its parts are nested more than {MAX_DEPTH} deep")
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            apply, left, right = _BINARY[type(node.op)], node.left, node.right
            first, second = self._compiled(left, depth + 1), self._compiled(right, depth + 1)
            return lambda values: _real(apply(first(values), second(values)))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            sign, inner = _UNARY[type(node.op)], self._compiled(node.operand, depth + 1)
            return lambda values: sign(inner(values))
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        raise self._wrong(f"{ast.unparse(node)!r} is neither a number, a grader, + - * / ^ nor a function")

    def _constant(self, node: ast.Constant) -> _Node:
        if type(node.value) not in (int, float):
            raise self._wrong(f"{node.value!r} is not a number")
        try:
            number = float(node.value)  # type: ignore[arg-type]
        except OverflowError:
            raise self._wrong("a number is too large") from None
        return lambda values: number

    def _name(self, name: str) -> _Node:
        if name not in self._names:
            raise self._wrong(f"there is no grader {name!r}; there are {', '.join(sorted(self._names))}")
        self.used.add(name)
        return lambda values: values[name]

    def _call(self, node: ast.Call, depth: int) -> _Node:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in _FUNCTIONS or node.keywords:
            raise self._wrong(f"{ast.unparse(node)!r}: the functions are {', '.join(_FUNCTIONS)}")
        function, count = _FUNCTIONS[name]
        if not node.args or (count is not None and len(node.args) != count):
            raise self._wrong(f"{name} takes {count or 'at least one'} argument{'s' if count is None else ''}")
        arguments = [self._compiled(argument, depth + 1) for argument in node.args]
        return lambda values: float(function(*(argument(values) for argument in arguments)))

    def _wrong(self, reason: str) -> ValueError:
        return ValueError(f"{self.where}={self.text[:120]!r}: {reason}")


def _real(value: Any) -> float:
    if isinstance(value, complex):
        raise TypeError("a power of a negative number is not real")
    return float(value)
