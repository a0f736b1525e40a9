"""JSON Schema for editors: every file of ours fits, and what the command would refuse is marked."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest
from omegaconf import OmegaConf
from referencing import Registry, Resource

from rlhf_lightning.cli import editor_schema
from rlhf_lightning.cli.main import main
from rlhf_lightning.conf_dir import conf_dir

#: Groups of the default suite: nested objects, several classes at a key, options of a class that is not named.
FEW = ("method", "rounds", "trainer")
GROUPS = [
    pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
    for name in editor_schema.groups()
    if name not in editor_schema._OF_JOBS
]


@cache
def validator(group: str) -> jsonschema.Draft7Validator:
    schema = editor_schema._group_schema(group)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def files(group: str) -> dict[str, Any]:
    return {
        path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted((conf_dir() / group).rglob("*.yaml"))
    }


@pytest.mark.parametrize("group", GROUPS)
def test_every_file_fits(group):
    for name, node in files(group).items():
        errors = [f"{list(error.absolute_path)}: {error.message}" for error in validator(group).iter_errors(node)]
        assert not errors, name


@pytest.mark.parametrize(
    ("group", "change"),
    [
        ("method", {"loss": {"_target_": "rlhf_lightning.losses.dpo", "betta": 0.2}}),
        ("method", {"loss": {"beta": "strong"}}),
        ("method", {"_target_": "rlhf_lightning.methods.Preference", "los": {}}),
        ("rounds", {"minibatches": "many"}),
        ("trainer", {"max_steps": "many"}),
        ("trainer", {"max_steps": 1.5}),
    ],
    ids=str,
)
def test_what_the_command_refuses_is_marked(group, change):
    assert not validator(group).is_valid(change)


@pytest.mark.parametrize(
    ("group", "change"),
    [
        ("method", {"loss": {"_target_": "rlhf_lightning.losses.dpo", "beta": 0.2}}),
        ("method", {"loss": {"beta": "${oc.env:BETA}"}}),
        ("method", {"loss": {"beta": "???"}}),
        ("trainer", {"max_steps": 7}),
        ("trainer", None),
    ],
    ids=str,
)
def test_what_the_command_takes_is_not(group, change):
    assert validator(group).is_valid(change)


def test_an_option_brings_its_text_and_default():
    beta = validator("method").schema["properties"]["loss"]["anyOf"][0]["properties"]["beta"]
    assert beta["description"]
    shared = editor_schema._properties(editor_schema.Paths)["shared"]
    assert shared["default"] == "auto"


@pytest.mark.slow
def test_the_command_writes_schemas_that_refer_to_each_other(tmp_path, capsys):
    assert main(["schema", str(tmp_path / "schema")]) == 0
    assert "yaml-language-server" in capsys.readouterr().out
    read = {path.name: json.loads(path.read_text()) for path in (tmp_path / "schema").glob("*.json")}
    registry = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in read.items())
    job = jsonschema.Draft7Validator(read["experiment.json"], registry=registry)
    for group in editor_schema._OF_JOBS:
        for name, node in files(group).items():
            assert not [error.message for error in job.iter_errors(node)], name
    assert not job.is_valid({"optimiser": {"lr": 1e-3}})
    assert not job.is_valid({"trainer": {"max_steps": "many"}})
