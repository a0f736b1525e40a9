"""Break a source file in every small way one can think of, and report what the tests do not notice.

    python benchmarks/mutate.py rlhf_lightning/losses/preference.py -- tests/losses

Each mutation changes one place: an operator (+ and -, * and /), a sign, sum and mean, chosen and rejected, a
comparison, a constant, the branches of an if; or it drops a detach, clamp, exp, log, square or relu. The mutated module
exists in memory only, in a forked process that runs the tests, in the given order, up to the first failure. A mutation
that no test notices is printed: either a test is missing, or the change makes no difference to the result.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

Change = Callable[[ast.AST], None]

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARISONS = {ast.Gt: ast.LtE, ast.Lt: ast.GtE, ast.GtE: ast.Gt, ast.LtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
NAMES = {"sum": "mean", "mean": "sum", "chosen": "rejected", "rejected": "chosen", "std": "mean", "minimum": "maximum"}
DROPPED_METHODS = {"detach", "clamp", "exp", "log", "square"}


def changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """What can be done to one node: a description and a function that does it in place."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node):
        other = OPERATORS[type(node.op)]
        yield f"{ast.unparse(node)}: {other.__name__}", lambda n: setattr(n, "op", other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield f"{ast.unparse(node)}: no minus", lambda n: setattr(n, "op", ast.UAdd())
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield f"{ast.unparse(node)}: {NAMES[node.attr]}", lambda n: setattr(n, "attr", NAMES[node.attr])
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        order = COMPARISONS[type(node.ops[0])]
        yield f"{ast.unparse(node)}: {order.__name__}", lambda n: setattr(n, "ops", [order()])
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        value = type(node.value)(2 * node.value + 1)
        yield f"{node.value}: {value}", lambda n: setattr(n, "value", value)
    elif isinstance(node, ast.IfExp):
        yield f"{ast.unparse(node)}: branches swapped", _swap_branches
    elif isinstance(node, ast.If):
        yield f"if {ast.unparse(node.test)}: negated", lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        yield from _changes_of_call(node, node.func)


def _changes_of_call(node: ast.Call, function: ast.Attribute) -> Iterator[tuple[str, Change]]:
    if function.attr == "relu":
        yield f"{ast.unparse(node)}: no relu", lambda n: _become(n, n.args[0])  # type: ignore[attr-defined]
    elif function.attr in DROPPED_METHODS and ast.unparse(function.value) not in {"torch", "math"}:
        yield f"{ast.unparse(node)}: no {function.attr}", lambda n: _become(n, n.func.value)  # type: ignore[attr-defined]


def _is_text(node: ast.BinOp) -> bool:
    """Whether an operand is a string, as in concatenations."""
    literals = [part for part in (node.left, node.right) if isinstance(part, ast.Constant)]
    return any(isinstance(part, ast.JoinedStr) for part in (node.left, node.right)) or any(
        isinstance(literal.value, str) for literal in literals
    )


def _swap_branches(node: ast.AST) -> None:
    node.body, node.orelse = node.orelse, node.body  # type: ignore[attr-defined]


def _become(node: ast.AST, other: ast.AST) -> None:
    node.__class__, node.__dict__ = other.__class__, other.__dict__


def mutations(source: str) -> Iterator[tuple[str, str]]:
    """(description, mutated source) for every change of every node."""
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    for position, node in enumerate(ast.walk(tree)):
        for description, change in changes(node):
            mutated = copy.deepcopy(tree)
            change(list(ast.walk(mutated))[position])
            code = ast.unparse(ast.fix_missing_locations(mutated))
            if code not in seen:
                seen.add(code)
                yield f"line {getattr(node, 'lineno', 0)}: {description}", code


class Replace(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a string."""

    def __init__(self, module: str, path: str, code: str) -> None:
        self.module, self.path, self.code = module, path, code

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """The module's spec, for that module only."""
        if fullname != self.module:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.path)

    def get_filename(self, fullname: str) -> str:
        """Where its source would be."""
        return self.path

    def get_data(self, path: str) -> bytes:
        """The mutated source."""
        return self.code.encode()


def passes(file: str, code: str, tests: list[str], seconds: int) -> bool:
    """Whether the tests pass with this code in place of the file's."""
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)  # a mutation may never end
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        module = file.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, Replace(module, os.path.abspath(file), code))
        import pytest

        # Without the project's options: the type-checking import hook would load the file itself.
        plain = ["-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-x", "-q"]
        os._exit(int(any(pytest.main([*plain, test]) != 0 for test in tests)))
    return os.waitpid(child, 0)[1] == 0


def main() -> int:
    """Mutate the given files; 1 if something went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], usage="%(prog)s FILE... -- TEST...")
    parser.add_argument("--seconds", type=int, default=300, help="time limit for one run of the tests")
    options, names = parser.parse_known_args()
    names = [name for name in names if name != "--"]
    files, tests = [n for n in names if not n.startswith("tests")], [n for n in names if n.startswith("tests")]
    sys.path.insert(0, os.getcwd())
    for heavy in ("torch", "jaxtyping", "hypothesis", "pytest"):  # once, for all children
        importlib.import_module(heavy)
    if not passes(files[0], Path(files[0]).read_text(), tests, options.seconds):
        print("the tests fail without any mutation (or take too long)")
        return 2
    unnoticed = 0
    for file in files:
        count = missed = 0
        for description, code in mutations(Path(file).read_text()):
            count += 1
            if passes(file, code, tests, options.seconds):
                missed += 1
                print(f"UNNOTICED {file} {description}", flush=True)
        print(f"{file}: {count} mutations, {missed} unnoticed", flush=True)
        unnoticed += missed
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
