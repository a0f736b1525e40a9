"""Configurations that were written to files: data of whoever wrote them, read without trust."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.renamed import with_new_names
from rlhf_lightning.yaml_text import read_yaml


def read_data(file: Path) -> DictConfig:
    """A resolved configuration that was written to a file: data, whose text is never an interpolation.

    What an older version wrote has the names of this one.

    Raises:
        ConfigError: it is not YAML, no mapping, stands for more than memory holds, or has an option under two names.
    """
    try:
        cfg = read_yaml(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(cfg, dict):
        raise ConfigError(f"{file} is not the configuration of a run: it holds no mapping")
    data: DictConfig = OmegaConf.create(literal(cfg))
    return with_new_names(data, warn=False, given=None)


def literal(value: Any) -> Any:
    """Plain containers whose text means itself when it is read as a configuration."""
    if isinstance(value, dict):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float)) else escaped(str(value))


def escaped(text: str) -> str:
    """Text that means itself in a configuration: ``${`` is escaped, and so are backslashes before it."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
