"""Members that the loop asks of methods and rewards are declared once, and each of them has it under that name."""

from __future__ import annotations

import ast
import difflib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rlhf_lightning.rewards as rewards
from rlhf_lightning.cli.build import make
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rewards import base
from rlhf_lightning.types import Rolled

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rlhf_lightning"
ASKING = [*PACKAGE.glob("rounds/*.py"), *PACKAGE.glob("lessons/*.py"), PACKAGE / "cli" / "online_checks.py"]
#: Members of torch's own objects, which some builds of them lack.
FOREIGN = {"to_local", "reshard"}
#: What a method has no default for.
REQUIRED = {"rft": ["method.credit.reward.spec=grader.json"]}
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))


def members(protocol: type) -> dict[str, Any]:
    """Members of a protocol: the type of an attribute or property, a function for a method."""
    members = dict(typing.get_type_hints(protocol))
    for part in reversed(protocol.__mro__):
        for name, value in vars(part).items():
            if name.startswith("_") or part.__module__ == "typing":
                continue
            if isinstance(value, property):
                members[name] = typing.get_type_hints(value.fget)["return"]
            elif inspect.isfunction(value):
                members[name] = value
    return members


def problems(value: Any, protocol: type) -> Iterator[str]:
    for name, wanted in members(protocol).items():
        if not hasattr(value, name):
            yield f"{name} is missing"
        elif not fits(getattr(value, name), wanted):
            yield f"{name} is {getattr(value, name)!r}, not {wanted}"


def fits(value: Any, wanted: Any) -> bool:
    """Return whether a value is of a declared type; a method must take the declared arguments."""
    if wanted is Any:
        return True
    if inspect.isfunction(wanted):
        return callable(value) and takes_arguments(value, wanted)
    if getattr(wanted, "_is_protocol", False):
        return not list(problems(value, wanted))
    origin, inner = typing.get_origin(wanted) or wanted, typing.get_args(wanted)
    if origin is Callable or origin is typing.get_origin(Callable[..., Any]):
        return callable(value)
    if origin is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if not isinstance(value, origin):
        return False
    parts = [*value.items()] if isinstance(value, Mapping) else [(one,) for one in value] if inner else []
    return all(fits(part, hint) for row in parts for part, hint in zip(row, inner, strict=True))


def takes_arguments(method: Any, wanted: Any) -> bool:
    """Return whether a bound method takes the arguments of a declared one; it may have options of its own."""
    asked, given = [*inspect.signature(wanted).parameters][1:], inspect.signature(method).parameters
    optional = [one for name, one in given.items() if name not in asked]
    return [*given][: len(asked)] == asked and all(one.default is not one.empty for one in optional)


@pytest.fixture(scope="module")
def models() -> ModelBuilder:
    return ModelBuilder(TinyRandom(), None, "frozen")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_draws_has_what_the_loop_asks_for(name, models):
    cfg = compose("train", [f"method={name}", "model=tiny_random", "data=tiny", *REQUIRED.get(name, ())])
    method = make(cfg.method)
    if method.func.kind == "prompt":
        assert list(problems(method(models=models), Rolled)) == []


def test_a_misspelt_member_is_a_problem(models):
    """The check itself: a name that is missing, one of another type, one whose arguments are others."""
    module = make(compose("train", ["method=grpo", "model=tiny_random", "data=tiny"]).method)(models=models)
    given = {name: getattr(module, name) for name in members(Rolled)}
    assert list(problems(SimpleNamespace(**given), Rolled)) == []
    misspelt = {name.replace("needs_reward", "need_reward"): value for name, value in given.items()}
    assert list(problems(SimpleNamespace(**misspelt), Rolled)) == ["needs_reward is missing"]
    other = given | {"required_scores": frozenset({1}), "scores": lambda rows: {}, "assignment": SimpleNamespace()}
    missing = [problem.partition(" ")[0] for problem in problems(SimpleNamespace(**other), Rolled)]
    assert missing == ["assignment", "required_scores", "scores"]


def test_nobody_guesses_what_a_method_or_a_reward_has():
    assert [problem for file in ASKING for problem in guesses(file.read_text(), file.name)] == []
    assert list(guesses('getattr(module, "temperature", 1.0)\nhasattr(reward, "policy")', "bad.py")) == [
        "bad.py:1: temperature",
        "bad.py:2: policy",
    ]


def guesses(source: str, name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            asked = node.args[1]
            if isinstance(asked, ast.Constant) and asked.value not in FOREIGN:
                yield f"{name}:{node.lineno}: {asked.value}"


#: By name, what a reward may have beside its call.
OPTIONAL = {
    name: value
    for protocol in vars(base).values()
    if getattr(protocol, "_is_protocol", False) and protocol.__module__ == base.__name__ and protocol is not base.Reward
    for name, value in members(protocol).items()
}


@pytest.mark.parametrize("name", [name for name in rewards.__all__ if inspect.isclass(getattr(rewards, name))])
def test_an_optional_member_of_a_reward_has_its_name(name):
    """One that is almost called so would never be looked at; one of other arguments would fail in a run."""
    reward = getattr(rewards, name)
    public = [member for member in dir(reward) if not member.startswith("_") and member not in OPTIONAL]
    assert [(member, near) for member in public if (near := difflib.get_close_matches(member, OPTIONAL, 1, 0.85))] == []
    for member in OPTIONAL.keys() & vars(reward).keys():
        if inspect.isfunction(wanted := OPTIONAL[member]):
            parameters = inspect.signature(vars(reward)[member]).parameters
            assert list(parameters)[1:] == list(inspect.signature(wanted).parameters)[1:]
