"""Reuse of a run's folder: its configuration, and its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rlhf_lightning.cli.compose import given_keys, parse
from rlhf_lightning.cli.config_file import read_data
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.renamed import with_new_names
from rlhf_lightning.files import recovered

#: What a run decides for ``rlhf evaluate``, unless the user does.
EVALUATED = ("method", "model", "adapter", "prompting", "reference", "data", "optimizer", "scheduler", "seed")
#: And of a run that learned from the policy's own responses.
ROLLED_OUT = ("reward", "rollout")


def from_run(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration of ``rlhf evaluate`` with what ``cfg.run`` decides filled in; unchanged without a run.

    Args:
        cfg: composed, options not yet checked: some may only make sense for the run's own model or data.
        overrides: the user's.
    """
    if cfg.run is None:
        return cfg
    result = evaluated(cfg, read_config(cfg.run), overrides)
    result.ckpt_path = str(weights_of(cfg.run, cfg.ckpt_path))
    return result


def evaluated(cfg: DictConfig, run: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration of ``rlhf evaluate`` with what a run's configuration decides filled in.

    Args:
        cfg: of the command.
        run: of the run.
        overrides: the user's.
    """
    online = OmegaConf.select(run, "method.rollout") is not None
    result = take_over(cfg, run, (*EVALUATED, *(ROLLED_OUT if online else ())), overrides)
    precision = OmegaConf.select(run, "trainer.precision")
    if precision is not None and not any(o.startswith(("trainer=", "trainer.precision=")) for o in overrides):
        result.trainer.precision = precision
    return with_prompting(result)


def read_config(folder: str | Path) -> DictConfig:
    """The resolved configuration of a run.

    Raises:
        ConfigError: the folder is not that of a run.
    """
    file = Path(folder).expanduser() / "config.yaml"
    if not file.is_file():
        hint = "" if Path(folder).expanduser().is_dir() else ": there is no such folder"
        raise ConfigError(f"run={folder} is not the folder of a run (no config.yaml){hint}")
    return read_data(file)


def take_over(cfg: DictConfig, run: DictConfig, keys: Iterable[str], overrides: Sequence[str]) -> DictConfig:
    """Start from the configuration of a run; what the user overrode stands above it.

    Args:
        cfg: composed.
        run: of the run.
        keys: top-level keys that a run decides.
        overrides: the user's, to tell their values from defaults.

    Returns:
        A new configuration. An override of a group (``data=hh_rlhf``) replaces the run's node, one of a single key
        (``data.batch_size=8``) changes that key of it.
    """
    result = cfg.copy()
    # What is chosen for another place (model@guidance.reference=hub) is an option of that place.
    given = [override.package or override.key_or_group for override in parse(overrides)]
    with open_dict(result):
        for key in keys:
            if key in run and key not in given:
                result[key] = run[key]
        for key in given:
            top = key.partition(".")[0]
            if "." in key and top in keys and top not in given:
                OmegaConf.update(result, key, _select(cfg, key), force_add=True)
    return with_new_names(result, given=given_keys(overrides))


def with_prompting(cfg: DictConfig) -> DictConfig:
    """A configuration whose rows are prompted as its group ``prompting`` says, whatever the run's own rows were.

    In the folder of a run ``data.spec.prompting`` is resolved, so it would not follow another choice.
    """
    for spec in ("spec", "data.spec"):
        if OmegaConf.select(cfg, spec) is not None:
            OmegaConf.update(cfg, f"{spec}.prompting", cfg.get("prompting"), force_add=True, merge=False)
    return cfg


def weights_of(folder: str | Path, ckpt_path: str | None = None) -> Path:
    """The checkpoint of a run: the given one, else its last.

    Raises:
        ConfigError: there is none.
    """
    if ckpt_path is not None:
        path = Path(ckpt_path).expanduser()
        if not path.exists():
            raise ConfigError(f"ckpt_path={ckpt_path}: there is no such checkpoint")
        return path
    root = Path(folder).expanduser()
    candidates = [recovered(root / "checkpoints" / "last.ckpt"), recovered(root / "last.ckpt")]
    candidates += sorted(root.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    weights = next((path for path in candidates if path.exists()), None)
    if weights is None:
        raise ConfigError(f"run={folder} has no checkpoint; give one with ckpt_path=..., or run `rlhf train` longer")
    return weights


def _select(cfg: DictConfig, key: str) -> Any:
    return OmegaConf.select(cfg, key)
