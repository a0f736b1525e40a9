"""compose(): the one way from a command and overrides to a checked configuration.

The command line, the tests and notebooks all use it::

    from rlhf_lightning import compose, train
    train(compose("train", ["method=ipo", "model=tiny_random", "trainer=debug", "paths.output_dir=/tmp/run"]))
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning._hydra.searchpath import RlhfLightningSearchPath
from rlhf_lightning.cli.errors import ConfigError, describe, suggestion
from rlhf_lightning.cli.hydra_targets import check_hydra
from rlhf_lightning.cli.overrides import quoting_hint, readable, several_values
from rlhf_lightning.cli.renamed import leaves, with_new_names
from rlhf_lightning.cli.schema import check_config
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.yaml_text import OversizedYamlError, check_folder

_UNCOMPOSED = "these options cannot be composed"
COMMANDS = ("train", "evaluate", "generate", "data", "game", "chain", "export", "optimize_prompt", "steer")


def compose(
    command: str,
    overrides: Sequence[str] = (),
    *,
    config_dirs: Iterable[str | Path] = (),
    check: bool = True,
) -> DictConfig:
    """Compose a command's configuration as ``rlhf <command> <overrides>`` would, and check it.

    Args:
        command: one of :data:`COMMANDS`.
        overrides: in Hydra's grammar, ``["method=ipo", "method.loss.beta=0.2"]``; text that it cannot read is quoted
            (:func:`rlhf_lightning.cli.overrides.readable`). A key that no yaml mentions needs
            no ``+``: whether it is an option of what it configures is checked against that thing's own signature.
        config_dirs: further folders with config groups, as ``--config-dir``.
        check: False skips the check of options (and the import of torch that it needs).

    Raises:
        ConfigError: unknown key, option or target, wrong type, missing mandatory value.
    """
    cfg, _ = compose_with_overrides(command, overrides, config_dirs=config_dirs, check=check)
    return cfg


def compose_with_overrides(
    command: str,
    overrides: Sequence[str] = (),
    *,
    config_dirs: Iterable[str | Path] = (),
    check: bool = True,
    with_hydra: bool = False,
) -> tuple[DictConfig, list[str]]:
    """As :func:`compose`; also returns the overrides in the form that Hydra itself accepts (``++`` where needed).

    With ``with_hydra`` the configuration keeps Hydra's own node.
    """
    register()
    if command not in COMMANDS:
        raise ConfigError(f"no command {command!r}.{suggestion(command, COMMANDS)}")
    folders = [f"file://{folder}" for folder in _folders(config_dirs)]
    search = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []
    accepted = readable(overrides)
    if several := [override for override in parse(accepted) if override.is_sweep_override()]:
        raise ConfigError(several_values(several[0]))
    _check_chosen(accepted, [conf_dir(), *_folders(config_dirs), *_environment()])
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3", job_name=command):
        # Each turn adds one override for a key that no yaml mentions; the schema judges it below.
        for _ in range(len(accepted) + 1):
            try:
                given = [*accepted, *search]
                cfg = hydra_compose(config_name=command, overrides=given, return_hydra_config=True)
                break
            except (HydraException, OmegaConfBaseException) as error:
                position = _absent_key(error, accepted)
                if position is None:
                    raise to_config_error(error) from error
                accepted[position] = "++" + accepted[position]
            except (yaml.YAMLError, ValueError) as error:  # Hydra's own, of a group that is given a number
                named = _no_choice(accepted) or _UNCOMPOSED
                problem = "a config file is not valid YAML" if isinstance(error, yaml.YAMLError) else named
                raise ConfigError(f"{problem}: {error}") from error
    try:
        check_hydra(cfg)
    except ConfigError as error:
        raise _naming_override(error, accepted) from error
    hydra_settings = _pop(cfg, "hydra")
    with_new_names(cfg, given=given_keys(accepted))
    if check:
        check_config(cfg, command, accepted)
    if with_hydra:
        with open_dict(cfg):
            cfg.hydra = hydra_settings
    return cfg, accepted


def register() -> None:
    """Teach OmegaConf and Hydra what our yaml files use. Idempotent."""
    # Our launchers carry the names of the plugins' own, so that their keys are checked against the plugin's schema.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
    if not OmegaConf.has_resolver("rlhf.first"):
        OmegaConf.register_new_resolver("rlhf.first", _first)
        OmegaConf.register_new_resolver("rlhf.choices", _choices)
        OmegaConf.register_new_resolver("rlhf.packaged", _packaged)
        OmegaConf.register_new_resolver("stage", _stage)
    registered = {plugin.__name__ for plugin in Plugins.instance().discover()}
    if RlhfLightningSearchPath.__name__ not in registered:
        Plugins.instance().register(RlhfLightningSearchPath)


def sweep_points(overrides: Sequence[str], folders: Iterable[str | Path] = ()) -> Iterator[list[str]]:
    """Overrides of single jobs that together show every value of a sweep once, the first one with all first values.

    A sweep over m x n values has m * n jobs; m + n - 1 of them are enough to meet every misspelt option before the
    first job runs. Values that only a sweeper knows (an interval) are left to it.

    Args:
        overrides: in Hydra's grammar.
        folders: with config groups of others: of a ``glob`` only what lies there is looked at before.
    """
    looked_at = [Path(folder).expanduser() for folder in folders]
    values = [list(_values(override, looked_at)) for override in parse(readable(overrides))]
    first = [choices[0] for choices in values if choices]
    yield first
    for position, choices in enumerate(values):
        for choice in choices[1:]:
            yield [chosen[0] if at != position else choice for at, chosen in enumerate(values) if chosen]


def given_keys(overrides: Sequence[str]) -> frozenset[str]:
    """Dotted keys that overrides set, those inside a mapping one by one."""
    parsed = [override for override in parse(overrides) if not override.is_delete()]
    return frozenset(key for one in parsed for key, _ in leaves(one.value(), one.key_or_group))


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them.

    Raises:
        ConfigError: a line that is not ``key=value``, or a value that needs quotes.
    """
    try:
        parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
        return parsed
    except (HydraException, OmegaConfBaseException) as error:
        raise to_config_error(error) from error


def _values(override: Override, folders: Sequence[Path]) -> Iterator[str]:
    if not override.is_sweep_override():
        yield str(override.input_line)
    elif override.is_discrete_sweep():
        prefix, value = str(override.input_line).split("=", 1)[0], override.value()
        if isinstance(value, Glob):
            group = str(override.key_or_group)
            names = {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}
            yield from (f"{prefix}={name}" for name in value.filter(sorted(names)))
        else:
            yield from (f"{prefix}={value}" for value in override.sweep_string_iterator())


def _first(*values: Any) -> Any:
    """Resolver ``rlhf.first``: the first value that is not null."""
    return next((value for value in values if value is not None), None)


def _packaged(name: str) -> str:
    """Resolver ``rlhf.packaged``: the path of a file that ships with the package.

    Raises:
        ConfigError: there is no such file.
    """
    from rlhf_lightning.data.sources.files import PACKAGED_FOLDER

    file = PACKAGED_FOLDER / name
    if not file.is_file():
        packaged = sorted(path.name for path in PACKAGED_FOLDER.iterdir() if path.is_file())
        raise ConfigError(f"${{rlhf.packaged:{name}}}: the package ships no such file.{suggestion(name, packaged)}")
    return str(file)


def _stage(reference: str) -> str:
    """Resolver ``stage``: a chain's reference to another stage as it stands; the chain puts a value in its place."""
    return f"${{stage:{reference}}}"


def _choices(group: str, but: Sequence[str] = ()) -> str:
    """Resolver ``rlhf.choices``: every file of a config group but some, as the values of a sweep.

    What is left out is a name, or a class: every file whose ``_target_`` it is.

    Raises:
        ConfigError: a name or a class to leave out is not in the group, so that a list of exceptions never goes stale.
    """
    targets = {path.stem: _target_of(path) for path in sorted((conf_dir() / group).glob("*.yaml"))}
    if gone := sorted(set(but) - set(targets) - set(targets.values())):
        raise ConfigError(f"rlhf.choices:{group} leaves out {gone}, which conf/{group} does not have")
    return ",".join(name for name, target in targets.items() if name not in but and target not in but)


def _target_of(path: Path) -> str:
    """The class that a yaml makes, without composing it: the line at its left margin."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("_target_:")), "")


def _folders(config_dirs: Iterable[str | Path]) -> list[Path]:
    """Folders with config groups, and those of ``RLHF_CONF`` looked at, before Hydra reads any file in them."""
    folders = [Path(folder).expanduser().resolve() for folder in config_dirs]
    try:
        for folder in [*folders, *_environment()]:
            check_folder(folder)
    except OversizedYamlError as error:
        raise ConfigError(f"a config file cannot be read: {error}") from error
    return folders


def _environment() -> list[Path]:
    """Folders of ``RLHF_CONF``."""
    return [Path(folder).expanduser() for folder in os.environ.get("RLHF_CONF", "").split(os.pathsep) if folder]


def _naming_override(error: ConfigError, overrides: Sequence[str]) -> ConfigError:
    """Name the override that cannot be resolved where Hydra's own key repeats it."""
    interpolating = next((override for override in overrides if "${" in override), None)
    if interpolating is None or not str(error).startswith("hydra.job.override_dirname"):
        return error
    return ConfigError(f"{interpolating}: {str(error).partition(': ')[2]}")


def _no_choice(overrides: Sequence[str]) -> str | None:
    """The override that gives a config group something else than names of its files; None: each gives names."""
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        group = (override.key_or_group or "").lstrip("+~")
        if (conf_dir() / group).is_dir() and not isinstance(override.value(), str | list | None):
            return text
    return None


def _check_chosen(overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """Refuse a file of a group that does not exist: of an optional group Hydra would leave it out without a word.

    Raises:
        ConfigError: as Hydra says it of groups that are not optional.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group, value = override.key_or_group or "", override.value()
        homes = [folder / group for folder in folders if (folder / group).is_dir()]
        if group.startswith("hydra") or override.is_delete():  # of Hydra's own groups plugins have more files
            continue
        for name in value if isinstance(value, list) else [value]:
            if not homes or not isinstance(name, str) or "${" in name:
                continue
            if not any((home / f"{name.removesuffix('.yaml')}.yaml").is_file() for home in homes):
                files = [file.relative_to(home) for home in homes for file in home.rglob("*.yaml")]
                raise ConfigError(_no_file(group, name, sorted({file.with_suffix("").as_posix() for file in files})))


def _pop(cfg: DictConfig, key: str) -> Any:
    with open_dict(cfg):
        return cfg.pop(key, None)


def _absent_key(error: Exception, overrides: Sequence[str]) -> int | None:
    """Position of the override that Hydra refused because no yaml mentions its key, None for any other error."""
    match = re.match(r"Could not override '([^']+)'", str(error))
    if not isinstance(error, ConfigCompositionException) or match is None or "is not in struct" not in _chain(error):
        return None
    for position, override in enumerate(overrides):
        key = override.split("=", 1)[0]
        if key == match.group(1) and "=" in override:
            return position
    return None


def _chain(error: BaseException) -> str:
    """The text of an error and of what caused it."""
    return f"{error} {error.__cause__}" if error.__cause__ is not None else str(error)


def to_config_error(error: Exception) -> ConfigError:
    """Hydra's error in our words, where we have better ones."""
    if isinstance(error, MissingConfigException):
        return ConfigError(_missing_file(error))
    text = describe(error)
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        text = f"{text}: {describe(cause)}"
    return ConfigError(text + (quoting_hint(error.override) if isinstance(error, OverrideParseException) else ""))


def _missing_file(error: MissingConfigException) -> str:
    """``method=dpoo: there is no such file. Did you mean method=dpo? One of: ...``."""
    missing = error.missing_cfg_file or ""
    options = error.options
    group, _, name = missing.rpartition("/")
    if not group or options is None:
        return str(error)
    return _no_file(group, name, options)


def _no_file(group: str, name: str, options: Sequence[str]) -> str:
    return f"{group}={name}: there is no {group}/{name}.yaml.{suggestion(name, options, prefix=f'{group}=')}"
