"""Break source files in every small way one can think of, and report what the tests do not notice.

    python benchmarks/mutate.py rlhf_lightning/losses/preference.py -- tests/losses

Each mutation changes one place: an operator (+ and -, * and /), a sign, sum and mean, chosen and rejected, a
comparison, a constant, the branches of an if; or it drops a detach, clamp, exp, log, square or relu.
Tests are collected once and run once with a trace of the files' lines. Then each mutation is put into the modules that
are loaded already, in a forked process that runs the tests which reach its statement, up to the first failure.
A mutation that no test notices is printed: either a test is missing, or the change makes no difference to the result.
The reasons of the latter stand in ``mutate_reasons.toml``; what they explain is counted and not printed.
"""

from __future__ import annotations

import argparse
import ast
import gc
import os
import signal
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from renew import renew

Change = Callable[[ast.AST], None]

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARISONS = {ast.Gt: ast.LtE, ast.Lt: ast.GtE, ast.GtE: ast.Gt, ast.LtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
NAMES = {"sum": "mean", "mean": "sum", "chosen": "rejected", "rejected": "chosen", "std": "mean", "minimum": "maximum"}
DROPPED_METHODS = {"detach", "clamp", "exp", "log", "square"}
#: Their dimension -1 of a table is its dimension 1.
ALONG = {
    "all",
    "amax",
    "any",
    "argmax",
    "cat",
    "cumsum",
    "gather",
    "log_softmax",
    "logsumexp",
    "max",
    "mean",
    "normalize",
    "softmax",
    "sort",
    "sum",
    "topk",
}
REASONS = Path(__file__).with_name("mutate_reasons.toml")


@dataclass(frozen=True)
class Mutation:
    """One change of a file."""

    line: int
    first: int  #: lines of the statement that holds it; 0: a constant or a default, which any test may read
    last: int
    key: str  #: the function and what is done there: how a reason is found again when lines move
    code: str  #: the whole mutated source


def changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """Mutations of one node: a description, and a function that applies it in place."""
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
    """Return whether an operand is a string, as in concatenations."""
    literals = [part for part in (node.left, node.right) if isinstance(part, ast.Constant)]
    return any(isinstance(part, ast.JoinedStr) for part in (node.left, node.right)) or any(
        isinstance(literal.value, str) for literal in literals
    )


def _swap_branches(node: ast.AST) -> None:
    node.body, node.orelse = node.orelse, node.body  # type: ignore[attr-defined]


def _become(node: ast.AST, other: ast.AST) -> None:
    node.__class__, node.__dict__ = other.__class__, other.__dict__


def mutations(source: str) -> Iterator[Mutation]:
    """Every change of every node."""
    tree = ast.parse(source)
    seen, count = {ast.unparse(tree)}, defaultdict[str, int](int)
    statements = dict(_statements(tree, "", None))
    dimensions = {id(argument) for node in ast.walk(tree) for argument in _dimensions(node)}
    for position, node in enumerate(ast.walk(tree)):
        if id(node) in dimensions:
            continue
        for description, change in changes(node):
            mutated = ast.parse(source)  # a tenth of the time of a deep copy
            change(list(ast.walk(mutated))[position])
            code = ast.unparse(ast.fix_missing_locations(mutated))
            if code not in seen:
                seen.add(code)
                function, statement = statements[node]
                key = f"{function}: {description}"
                count[key] += 1
                if count[key] > 1:
                    key += f" #{count[key]}"
                first, last = (statement.lineno, statement.end_lineno) if statement else (0, 0)
                yield Mutation(getattr(node, "lineno", 0), first, last or first, key, code)


def _dimensions(node: ast.AST) -> list[ast.expr]:
    """The argument -1 of a call that works along a dimension."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in ALONG:
        return []
    named = [keyword.value for keyword in node.keywords if keyword.arg == "dim"]
    return [argument for argument in (*node.args, *named) if ast.unparse(argument) == "-1"]


def _statements(node: ast.AST, function: str, statement: Any) -> Iterator[tuple[ast.AST, tuple[str, Any]]]:
    """The function and the innermost statement of each node below one."""
    for child in ast.iter_child_nodes(node):
        name = function
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            name = f"{function}.{child.name}".lstrip(".")
        inner = statement
        if isinstance(child, (ast.ClassDef, ast.arguments)):
            inner = None  # what stands in a class or a signature is no statement of a function
        elif isinstance(child, ast.FunctionDef) or (isinstance(child, ast.stmt) and statement is not None):
            inner = child
        yield child, (name, inner)
        yield from _statements(child, name, inner)


@dataclass
class Mutator:
    """A pytest plugin that runs the collected tests once for a trace, and then on every mutation."""

    files: list[str]
    reasons: dict[str, dict[str, str]]
    seconds: int
    slowest: float
    again: str = ""  #: what an earlier run printed: no other mutations are tried
    survivors: int = 0
    failed: bool = False
    lines: dict[str, dict[Any, set[int]]] = field(default_factory=dict)  #: by file: what each test reaches
    took: dict[Any, float] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        self.failed |= report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Mutate, in place of running the tests."""
        self.lines = {os.path.abspath(file): {} for file in self.files}
        for item in session.items:
            self._trace(item)
            if self.failed:
                print(f"{item.nodeid} fails without any mutation")
                self.survivors = 1
                return True
        tests = [item for item in session.items if self.took[item] < self.slowest]
        print(f"{len(tests)} tests in {sum(self.took[item] for item in tests):.0f} s", flush=True)
        gc.collect()
        gc.freeze()  # a child that collects garbage would copy every page
        for file in self.files:
            self._mutate(file, tests)
        return True

    def _trace(self, item: pytest.Item) -> None:
        reached: dict[str, set[int]] = {file: set() for file in self.lines}

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            code: CodeType = frame.f_code
            if code.co_filename not in reached:
                return None
            reached[code.co_filename].add(frame.f_lineno)
            return trace

        start = time.process_time()
        sys.settrace(trace)
        try:
            self._run(item, None)
        finally:
            sys.settrace(None)
        self.took[item] = time.process_time() - start
        for file, lines in reached.items():
            self.lines[file][item] = lines

    @staticmethod
    def _run(item: pytest.Item, following: pytest.Item | None) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def _mutate(self, file: str, tests: list[pytest.Item]) -> None:
        lines, explained = self.lines[os.path.abspath(file)], self.reasons.get(file, {})
        killers: dict[pytest.Item, int] = defaultdict(int)
        total = reasoned = missed = 0
        module = import_module(file.removesuffix(".py").replace("/", "."))
        for mutation in mutations(Path(file).read_text(encoding="utf-8")):
            if self.again and f"UNNOTICED {file} line {mutation.line} {mutation.key} (" not in self.again:
                continue
            total += 1
            statement = range(mutation.first, mutation.last + 1)
            reached = [t for t in tests if not mutation.first or not lines[t].isdisjoint(statement)]
            reached.sort(key=lambda t: (-killers[t], not lines[t], self.took[t]))
            killer = self._first_failure(module, mutation.code, reached)
            if killer is not None:
                if killer:
                    killers[reached[killer - 1]] += 1
                if mutation.key in explained:
                    print(f"STALE REASON {file} {mutation.key}", flush=True)
            elif mutation.key in explained:
                reasoned += 1
            else:
                missed += 1
                print(f"UNNOTICED {file} line {mutation.line} {mutation.key} ({len(reached)} tests)", flush=True)
        killed = total - reasoned - missed
        print(f"{file}: {total} mutations, {killed} killed, {reasoned} explained, {missed} unnoticed", flush=True)
        self.survivors += missed

    def _first_failure(self, module: ModuleType, code: str, tests: list[pytest.Item]) -> int | None:
        """Number of the test, from 1, that fails on the mutated module; 0: it cannot be imported; None: all pass."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            for number, test in enumerate([None, *tests]):
                # A mutation may never end. CPU time, so that a busy machine is not taken for a test that notices.
                signal.setitimer(signal.ITIMER_PROF, self.seconds)
                signal.alarm(20 * self.seconds)
                os.write(writer, b".")
                try:
                    if test is None:
                        renew(module, code)
                    else:
                        following = tests[number] if number < len(tests) else None
                        self._run(test, following)
                except BaseException:
                    self.failed = True
                if self.failed:
                    os._exit(1)
            os._exit(0)
        os.close(writer)
        status = os.waitpid(child, 0)[1]
        with os.fdopen(reader, "rb") as pipe:
            begun = pipe.read()
        return len(begun) - 1 if status else None


def main() -> int:
    """Mutate the given files; 1 if something went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], usage="%(prog)s FILE... -- TEST...")
    parser.add_argument("--seconds", type=int, default=30, help="CPU time limit of one test of a mutation")
    parser.add_argument("--slowest", type=float, default=3.0, help="leave out tests that take more CPU seconds")
    parser.add_argument("--again", type=Path, help="what another run printed; try what it left unnoticed, no more")
    options, names = parser.parse_known_args()
    names = [name for name in names if name != "--"]
    files, tests = [n for n in names if not n.startswith("tests")], [n for n in names if n.startswith("tests")]
    sys.path.insert(0, os.getcwd())
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    from hypothesis import Phase, settings

    quick = settings(database=None, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
    settings.register_profile("mutate", quick)
    settings.load_profile("mutate")
    again = options.again.read_text(encoding="utf-8") if options.again else ""
    mutator = Mutator(files, reasons, options.seconds, options.slowest, again)
    # Without the project's options: the type-checking import hook would load the files itself.
    plain = [
        "-o",
        "addopts=",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:timeout",
        "-qs",
        "-m",
        "not slow",
    ]
    status = pytest.main([*plain, *tests], plugins=[mutator])
    return int(mutator.survivors > 0 or status not in (0, pytest.ExitCode.NO_TESTS_COLLECTED))


if __name__ == "__main__":
    sys.exit(main())
