"""``rlhf schema FOLDER``: JSON Schema of every config group, so that an editor completes and checks yaml files.

Made from the signatures that :mod:`rlhf_lightning.cli.schema` checks against, and from the docstrings of what the yaml
files name: a new loss, reward or callback is in it without anyone writing a schema.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.cli.annotations import annotations_of, json_schema_of
from rlhf_lightning.cli.console import OUT
from rlhf_lightning.cli.results import short
from rlhf_lightning.cli.targets import locate
from rlhf_lightning.cli.top_keys import SEVERAL_JOBS, TOP_KEYS, Paths
from rlhf_lightning.conf_dir import conf_dir

Json = dict[str, Any]
#: Schema of a whole job, of which an experiment, a sweep or a recipe sets parts.
JOB = "experiment"
#: Groups of such files: their keys are those of a job.
_OF_JOBS = (JOB, "sweep", "recipe", "world", "debug")
#: Groups without a ``_target_`` of their own, and what their keys are options of.
_OPTIONS_OF = {"trainer": "lightning.pytorch.Trainer", "paths": f"{Paths.__module__}.{Paths.__qualname__}"}
_HYDRA_KEYS: Json = {
    "_target_": {"type": "string", "description": "Class or function that this node makes."},
    "_partial_": {"type": "boolean"},
    "_recursive_": {"type": "boolean"},
    "_convert_": {"type": "string"},
}
_DEFAULTS: Json = {"type": "array", "items": {"type": ["string", "object"]}, "description": "Files to start from."}
#: A value that is filled in elsewhere.
_REFERENCE: Json = {"type": "string", "pattern": r"^\?\?\?$|\$\{"}
#: What a node with a target makes is checked where the command does it: as the value of an option it is any object.
_MADE: Json = {"type": "object", "required": ["_target_"]}
_ANY_PLAIN: Json = {"type": ["string", "number", "boolean", "array"]}
_EMPTY: Json = {"type": ["null", "string"]}
_ARGUMENT = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n      +\S.*)*)", re.MULTILINE)


def main(arguments: Sequence[str]) -> int:
    """``rlhf schema [FOLDER]``."""
    parser = argparse.ArgumentParser(
        prog="rlhf schema",
        description="Write JSON Schema of every config group, with which an editor completes and checks yaml files.",
        epilog="example: rlhf schema .vscode/rlhf",
    )
    parser.add_argument("folder", nargs="?", default="schema", help="where to write (default: schema)")
    folder = Path(parser.parse_args(arguments).folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / f"{name}.json").write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    files = {f"{short(folder)}/{name}.json": f"**/conf/{name}/**/*.yaml" for name in groups()}
    OUT.print(f"{len(files)} schemas are in {short(folder)}. For the YAML extension of VS Code, in settings.json:\n")
    OUT.print_json(json.dumps({"yaml.schemas": files}))
    OUT.print("\nAny editor with a YAML language server takes the first line of a file:\n", markup=False)
    OUT.print(f"# yaml-language-server: $schema={short(folder)}/experiment.json", markup=False)
    return 0


def groups() -> list[str]:
    """Every config group that is ours."""
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra")


def schemas() -> dict[str, Json]:
    """Group -> schema of its files."""
    single = {name: _group_schema(name) for name in groups() if name not in _OF_JOBS}
    return single | {name: _job_schema(list(single)) for name in _OF_JOBS if name in groups()}


def _job_schema(single: Sequence[str]) -> Json:
    """Of files that set parts of a whole job: its groups, and the other keys of every command."""
    properties: Json = {}
    for keys in TOP_KEYS.values():
        properties |= _properties(keys)
    properties |= {name: {"type": "object"} for name in SEVERAL_JOBS}
    properties |= {name: {"$ref": f"{name}.json"} for name in single if name in properties or name == "evaluation"}
    return _titled(JOB, {**properties, "defaults": _DEFAULTS, "hydra": {"type": "object"}}, closed=True)


def _group_schema(group: str) -> Json:
    """Of the files of a group: at every key the options of what any of its files makes there."""
    nodes = [yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in (conf_dir() / group).glob("**/*.yaml")]
    made = {key: sorted(names) for key, names in _targets_by_key(nodes).items()}
    made.setdefault("", [_OPTIONS_OF[group]] if group in _OPTIONS_OF else [])
    inner = _node("", nodes, made)
    inner["properties"]["defaults"] = _DEFAULTS
    return inner | _titled(group, inner["properties"], closed=False)


def _targets_by_key(nodes: Sequence[Json]) -> dict[str, set[str]]:
    """Schema of each key that the files of a group set."""
    made: dict[str, set[str]] = defaultdict(set)

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("_target_"), str) and "${" not in node["_target_"]:
                made[key].add(node["_target_"])
            for name, inner in node.items():
                walk(inner, f"{key}.{name}" if key else str(name))

    for node in nodes:
        walk(node, "")
    return made


def _node(key: str, nodes: Sequence[Any], made: Mapping[str, Sequence[str]]) -> Json:
    """Schema of a mapping: options of what may be made here, and the mappings that files have below."""
    targets = made.get(key, ())
    properties = _united([_options_of(target) for target in targets])
    for name in sorted({str(name) for node in nodes if isinstance(node, dict) for name in node} - {"defaults"}):
        below = [node[name] for node in nodes if isinstance(node, dict) and name in node]
        full = f"{key}.{name}" if key else name
        if any(isinstance(node, dict) and (node or full in made) for node in below):
            alone = properties.get(name, {})
            plain = [kind for kind in alone.get("anyOf", ()) if kind] if alone else [_ANY_PLAIN]
            properties[name] = {**alone, "anyOf": [_node(full, below, made), *plain, _EMPTY]}
        else:
            properties.setdefault(name, {})
    schema: Json = {"type": "object", "properties": {**_HYDRA_KEYS, **properties}}
    if rules := [rule for target in targets for rule in _rules(target)]:
        schema["allOf"] = rules
    return schema


def _united(several: Sequence[Json]) -> Json:
    """Options of several classes: one of a name that more of them have may be what any of them takes."""
    united: Json = {}
    for name in dict.fromkeys(name for options in several for name in options):
        values = [options[name] for options in several if name in options]
        kinds = [kind for value in values for kind in value.get("anyOf", [{}])]
        united[name] = {**values[0], "anyOf": [kind for at, kind in enumerate(kinds) if kind not in kinds[:at]]}
        if any(value.get("default") != values[0].get("default") for value in values):
            united[name].pop("default", None)
    return united


def _rules(target: str) -> Iterator[Json]:
    """Where a file says itself what it makes, only the options of that are right."""
    if target in _OPTIONS_OF.values() or _open_ended(target):
        return
    names = [*_HYDRA_KEYS, "defaults", *_options_of(target)]
    chosen = {"properties": {"_target_": {"const": target}}, "required": ["_target_"]}
    yield {"if": chosen, "then": {"propertyNames": {"enum": names}}}


@cache
def _options_of(target: str) -> Json:
    return _properties(locate(target))


def _properties(target: Callable[..., Any]) -> Json:
    """Schema of each parameter of a class or function, with its text and default."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # written in C without a signature
        return {}
    types, texts = annotations_of(target), dict(_texts(target))
    properties: Json = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or _given_in_code(target, parameter):
            continue
        schema = json_schema_of(types.get(parameter.name, Any))
        value: Json = {"anyOf": [schema, _MADE, _REFERENCE]} if schema else {}
        if text := texts.get(parameter.name):
            value["description"] = text
        if isinstance(parameter.default, (int, float, str, bool)):
            value["default"] = parameter.default
        properties[parameter.name] = value
    return properties


def _given_in_code(target: Callable[..., Any], parameter: inspect.Parameter) -> bool:
    """Check whether it is an input of a function, such as a loss's log-probs, and no option of it."""
    required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    return required and not inspect.isclass(target)


def _open_ended(target: str) -> bool:
    try:
        parameters = inspect.signature(locate(target)).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _texts(target: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Descriptions of the arguments in a docstring."""
    documents = [inspect.getdoc(target) or ""]
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        documents.append(inspect.getdoc(target.__init__) or "")
    for text in documents:
        for names, described in _ARGUMENT.findall(text):
            yield from ((name, " ".join(described.split())) for name in names.split(", "))


def _titled(name: str, properties: Json, *, closed: bool) -> Json:
    schema: Json = {"$schema": "http://json-schema.org/draft-07/schema#", "title": f"rlhf-lightning: {name}"}
    schema |= {"type": ["object", "null"], "properties": properties}
    return schema | ({"additionalProperties": False} if closed else {})
