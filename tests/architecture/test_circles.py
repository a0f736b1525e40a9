"""No two files of the package need each other, wherever an import stands and whatever it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.architecture.test_imports import PACKAGE, imports

Graph = Mapping[str, frozenset[str]]

#: Circles that are known and are to be opened, each as the modules on it. One that is gone must leave this list.
ACCEPTED: tuple[frozenset[str], ...] = ()


def graph(package: Path) -> Graph:
    """By module the modules of the same package that it imports: at the top, in functions, and for types.

    That importing ``a.b`` also runs ``a/__init__.py`` is left aside: a package's own file is a module like the others.
    """
    files = {name_of(file, package): file for file in sorted(package.rglob("*.py"))}
    return {name: frozenset(resolved(imports(file), files)) - {name} for name, file in files.items()}


def name_of(file: Path, package: Path) -> str:
    """The dotted name of a file's module."""
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def resolved(names: Iterator[str], modules: Mapping[str, Path]) -> Iterator[str]:
    """The module that each imported name is or stands in; names of other packages are left out."""
    for name in names:
        module = name if name in modules else name.rpartition(".")[0]
        if module in modules:
            yield module


def circles(edges: Graph) -> list[list[str]]:
    """Shortest circles: one through every module that lies on any, each circle once."""
    by_members: dict[frozenset[str], list[str]] = {}
    for module in sorted(edges):
        if (circle := shortest(edges, module)) is not None:
            by_members.setdefault(frozenset(circle), circle)
    return list(by_members.values())


def shortest(edges: Graph, start: str) -> list[str] | None:
    """The shortest way from a module back to itself, without its end; None where there is none."""
    came_from = dict.fromkeys(sorted(edges[start]), start)
    queue = list(came_from)
    for module in queue:
        if module == start:
            break
        for following in sorted(edges[module] - came_from.keys()):
            came_from[following] = module
            queue.append(following)
    if start not in came_from:
        return None
    way = [came_from[start]]
    while way[-1] != start:
        way.append(came_from[way[-1]])
    return way[::-1]


def as_chain(circle: list[str]) -> str:
    return " -> ".join([*circle, circle[0]])


def test_no_circles():
    new_circles = [circle for circle in circles(graph(PACKAGE)) if frozenset(circle) not in ACCEPTED]
    assert not new_circles, "import circles:\n" + "\n".join(map(as_chain, new_circles))


def test_accepted_circles_are_there():
    """A circle that was opened is struck off the list."""
    present = {frozenset(circle) for circle in circles(graph(PACKAGE))}
    assert [sorted(circle) for circle in ACCEPTED if circle not in present] == []


@pytest.mark.parametrize("late", ["    from {0} import x\n", "    import {0}\n"], ids=["from", "import"])
def test_circles_are_noticed(tmp_path, late):
    """A circle of three by an import at the top, one in a function and one for types; a chain beside it is none."""
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "__init__.py").write_text("")
    (package / "one.py").write_text("from package.deep import two\n")
    (package / "deep" / "two.py").write_text("def f():\n" + late.format("package.three"))
    (package / "three.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n" + late.format("package.one")
    )
    (package / "four.py").write_text("from package import one, five\n")
    (package / "five.py").write_text("import os.path\nfrom package.deep.two import f\n")
    assert [as_chain(circle) for circle in circles(graph(package))] == [
        "package.deep.two -> package.three -> package.one -> package.deep.two"
    ]


def test_two_circles_through_one_module_are_two():
    edges = {"a": frozenset("b"), "b": frozenset("ac"), "c": frozenset("b"), "d": frozenset("a")}
    assert [as_chain(circle) for circle in circles(edges)] == ["a -> b -> a", "c -> b -> c"]


def test_nothing_stands_on_the_package_itself():
    """The package's own file has the lazy names of everything, so whoever imports it imports all."""
    assert [module for module, needed in graph(PACKAGE).items() if PACKAGE.name in needed] == []
