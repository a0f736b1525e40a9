"""The check of Hydra's own part of a configuration: what it makes, what it logs with, what it starts.

Hydra makes callbacks, launchers and sweepers and sets up logging before the task of a command is called, so this part
is checked by the composition that comes first.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning.cli.errors import EXTRAS, ConfigError, describe
from rlhf_lightning.cli.targets import locate, targets
from rlhf_lightning.cli.trust import commanded, is_commanded, leaves, may_be_given
from rlhf_lightning.conf_dir import conf_dir

_PLUGINS = ("hydra_plugins", "hydra._internal.core_plugins")
#: Pattern of a key in ``hydra``, the class that is made there, and the packages that it may come from.
_TARGET_KEYS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        r"callbacks\.[^.]+",
        "hydra.experimental.callback.Callback",
        ("hydra.experimental.callbacks", "rlhf_lightning.cli.sweep"),
    ),
    (r"launcher", "hydra.plugins.launcher.Launcher", _PLUGINS),
    (r"sweeper", "hydra.plugins.sweeper.Sweeper", _PLUGINS),
    (r"sweeper\.sampler", "optuna.samplers.BaseSampler", ("optuna.samplers",)),
)
#: What a logging configuration may make, as ``class`` or ``()``, and the objects that it may point to.
_LOGGING = frozenset(
    {
        "logging.FileHandler",
        "logging.Formatter",
        "logging.NullHandler",
        "logging.StreamHandler",
        "logging.handlers.RotatingFileHandler",
        "logging.handlers.TimedRotatingFileHandler",
        "colorlog.ColoredFormatter",
        "rich.logging.RichHandler",
    }
)
_STREAMS = frozenset({"ext://sys.stdout", "ext://sys.stderr"})
#: Stands for the job's folder, which is not known yet.
_FOLDER = "<folder of the job>"
#: Keys of ``hydra`` that count on the command line alone, and what a value becomes.
_COMMANDED: Mapping[str, str] = {
    "job.env_set": "the environment of processes",
    "sweeper.custom_search_space": "a function that is called",
    "sweeper.storage": "a database that is read",
}
#: Options of launchers that are commands, or go into one as they are.
_COMMANDS = frozenset({"additional_parameters", "env_setup", "python", "ray", "setup", "srun_args"})
#: Text that means nothing to a shell or to the header of a Slurm script.
_PLAIN = re.compile(r"[\w.,:@%+*/=<> -]*")


def check_hydra(cfg: DictConfig) -> None:
    """Check Hydra's own part of a composed configuration.

    Args:
        cfg: with the node ``hydra``.

    Raises:
        ConfigError: it makes something that is no callback, launcher, sweeper or log handler, or has a value that
            counts on the command line alone.
    """
    node = _resolved(cfg)
    overrides: Any = OmegaConf.to_container(cfg.hydra.overrides)  # as they were typed, interpolations too
    given = commanded([*overrides["hydra"], *overrides["task"]])
    problems = [problem for key, made in targets(node) if (problem := _problem(key, made["_target_"]))]
    for section in ("job_logging", "hydra_logging"):
        problems += _logging(node.get(section), f"hydra.{section}")
    problems += _uncommanded(node, given)
    if problems:
        raise ConfigError("\n".join(problems))


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """Hydra's part as plain containers, with stand-ins for what is known only of a job that runs."""
    raw: Any = OmegaConf.to_container(cfg, enum_to_str=True)
    node = raw["hydra"]
    node.pop("overrides", None)
    node["runtime"]["output_dir"] = _FOLDER
    for name, value in {"name": "job", "num": 0, "id": "0", "override_dirname": ""}.items():
        if node["job"].get(name, "???") == "???":
            node["job"][name] = value
    try:
        tree = OmegaConf.to_container(OmegaConf.create(raw).hydra, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'hydra'}: {describe(error)}") from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _problem(key: str, path: Any) -> str | None:
    """Reason to refuse a ``_target_`` at a key of ``hydra``; None if it is allowed."""
    full = f"hydra.{key}._target_: {path}"
    expected = next(((base, homes) for pattern, base, homes in _TARGET_KEYS if re.fullmatch(pattern, key)), None)
    if expected is None:
        return f"{full} would be made here, where only plain values belong"
    base, homes = expected
    if not isinstance(path, str) or not any(path.startswith(f"{home}.") for home in homes):
        return f"{full} does not belong to Hydra or its plugins"
    _check_installed(path)
    try:
        target = locate(path)
        fits = inspect.isclass(target) and issubclass(target, locate(base))
    except ImportError as error:
        return f"{full} cannot be imported: {error}"
    return None if fits else f"{full} is not a {base.rpartition('.')[2].lower()}, which is what belongs here"


def _check_installed(path: str) -> None:
    """Raise ConfigError for a plugin of Hydra's that is not installed."""
    root, _, rest = path.partition(".")
    plugin = rest.partition(".")[0]
    if root == "hydra_plugins" and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        name = next((extra for module, extra in EXTRAS.items() if module in plugin), None)
        hint = f"pip install 'rlhf-lightning[{name}]'" if name else f"pip install {plugin}"
        raise ConfigError(f"{plugin.replace('_', '-')} is not installed: {hint}")


def _logging(node: Any, key: str) -> Iterator[str]:
    """Problems of a configuration of the module logging, which makes what ``class`` and ``()`` name."""
    if isinstance(node, Mapping):
        for name in ("class", "()"):
            if name in node and node[name] not in _LOGGING:
                yield f"{key}.{name}: {node[name]} is not a handler or formatter of logs that a yaml may use"
        file = str(node.get("filename", _FOLDER))
        if not file.startswith(_FOLDER) or ".." in Path(file).parts:
            yield f"{key}.filename: {file} is not in the folder of the job: write ${{hydra.runtime.output_dir}}/NAME"
        for name, inner in node.items():
            yield from _logging(inner, f"{key}.{name}")
    elif isinstance(node, list):
        for position, inner in enumerate(node):
            yield from _logging(inner, f"{key}[{position}]")
    elif isinstance(node, str) and node.startswith(("ext://", "cfg://")) and node not in _STREAMS:
        yield f"{key}: {node} is not one of {', '.join(sorted(_STREAMS))}"


def _uncommanded(node: Mapping[str, Any], given: frozenset[str]) -> Iterator[str]:
    """Problems of values that count only on the command line, wherever else they stand."""
    advice = "counts only on the command line: give it there"
    for key, becomes in _COMMANDED.items():
        section, _, option = key.partition(".")
        for leaf, value in leaves((node.get(section) or {}).get(option), f"hydra.{key}"):
            if not is_commanded(leaf, given):
                yield f"{leaf}: {value!r} stands in a yaml, and what becomes {becomes} {advice}"
    sweeper = node.get("sweeper") or {}
    for name in [*(sweeper.get("params") or ()), *(sweeper.get("search_space") or ())]:
        plain = str(name).lstrip("+~")
        if plain.partition("/")[0].partition(".")[0] == "hydra" or not may_be_given(plain):
            yield f"hydra.sweeper.params.{name}: {plain} {advice}"
    if foreign(node):
        yield from _launcher(node.get("launcher") or {}, given, advice)


def foreign(node: Mapping[str, Any]) -> bool:
    """Check whether yaml files of others than us and Hydra's plugins took part."""
    sources = (node.get("runtime") or {}).get("config_sources") or ()
    return any(source["schema"] == "file" and source["path"] != str(conf_dir()) for source in sources)


def _launcher(node: Mapping[str, Any], given: frozenset[str], advice: str) -> Iterator[str]:
    """Problems of a launcher's options: they become command lines and headers of scripts."""
    for leaf, value in leaves(node, "hydra.launcher"):
        name = leaf.removeprefix("hydra.launcher.").partition(".")[0].partition("[")[0]
        if name == "_target_" or not isinstance(value, str) or is_commanded(leaf, given):
            continue
        if name in _COMMANDS or not _PLAIN.fullmatch(value):
            yield f"{leaf}: {value!r} stands in a yaml, and what becomes a command {advice}"
