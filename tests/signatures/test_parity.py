"""Signatures that are read from source are those of the imported objects, for everything that a yaml may name."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import get_args

from rlhf_lightning.cli.annotations import json_schema_of
from rlhf_lightning.cli.roles import ROLE_BY_KEY
from rlhf_lightning.cli.signature import ImportedSignature, ReadSignature, is_value_object
from rlhf_lightning.cli.targets import inside, locate
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.signatures import UnreadableError, definition_of

TARGET = re.compile(r"_target_[:=]\s*(\w+(?:\.\w+)+)")
#: With a check of their own (``cli.hydra_targets``), or in a package that is an extra.
ELSEWHERE = ("hydra_plugins", "optuna", "rlhf_lightning.cli", "bitsandbytes")


def in_conf() -> list[str]:
    texts = [file.read_text(encoding="utf-8") for file in sorted(conf_dir().rglob("*.yaml"))]
    paths = {path for text in texts for path in TARGET.findall(text)}
    return sorted(path for path in paths if not inside(path, ELSEWHERE))


def public() -> Iterator[str]:
    """Public classes of other packages that a role allows."""
    for module in {module for _, role in ROLE_BY_KEY for module in role.public if not inside(module, ELSEWHERE)}:
        names = vars(importlib.import_module(module)).items()
        yield from (f"{module}.{name}" for name, value in names if inspect.isclass(value) and name[0].isupper())


def same(read: ReadSignature, imported: ImportedSignature) -> None:
    """Names, kinds, and which of them have defaults; defaults that are literals are equal."""
    assert list(read.parameters) == list(imported.parameters)
    for name, parameter in imported.parameters.items():
        assert read.parameters[name].kind == parameter.kind
        assert (read.parameters[name].default is parameter.empty) == (parameter.default is parameter.empty)
        if isinstance(read.parameters[name].default, int | float | str | bool | tuple):
            assert read.parameters[name].default == parameter.default


def test_everything_in_conf_is_read_as_it_is():
    paths = [*in_conf(), "lightning.pytorch.Trainer"]
    assert len(paths) > 150
    for path in paths:
        read, imported = ReadSignature(definition_of(path)), ImportedSignature(locate(path))
        same(read, imported)
        for name in imported.parameters:
            of_source, of_object = read.annotation(name), imported.annotation(name)
            assert json_schema_of(of_source) == json_schema_of(of_object), (path, name)
            objects = list(map(is_value_object, get_args(of_source)))
            assert objects == list(map(is_value_object, get_args(of_object))), (path, name)


def test_what_other_packages_have_is_read_as_it_is_or_not_at_all():
    compared = 0
    for path in sorted(public()):
        try:
            read = ReadSignature(definition_of(path))
        except UnreadableError:
            continue
        same(read, ImportedSignature(locate(path)))
        compared += 1
    assert compared > 60
