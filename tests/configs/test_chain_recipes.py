"""Every recipe of several stages composes at every size, and every stage of it takes what another leaves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.cli.chain import PUBLISHED, chain_of, names
from rlhf_lightning.cli.chain_run import Planner
from rlhf_lightning.cli.chain_stages import OF_CHAIN
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.stages import Command
from rlhf_lightning.conf_dir import conf_dir


def sizes(name: str) -> list[str]:
    node = yaml.safe_load((conf_dir() / "experiment" / f"{name}.yaml").read_text())
    return [PUBLISHED, *(node["chain"].get("sizes") or {})]


#: So many stages take long to compose.
LONG = ("compare_training_free", "compare_training_free_smollm2")
SIZES = [
    pytest.param(name, size, marks=() if size == "tiny" and name not in LONG else pytest.mark.slow)
    for name in names()
    for size in sizes(name)
]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_recipe_composes(name: str, size: str, tmp_path: Path) -> None:
    """Values for what the published size leaves to the user (``???``); a smaller one leaves nothing."""
    options: list[str] = []
    cfg = compose("chain", [f"experiment={name}", f"size={size}"])
    for _ in range(12):
        try:
            Planner(tmp_path, Command.of("chain", [], OF_CHAIN)).check(chain_of(cfg, options))
            return
        except ConfigError as error:
            missing = re.findall(r"^(?:stage (\w+): )?(\S+) has no value and needs one", str(error), re.MULTILINE)
            stage = missing[0][0] if missing else ""
            if not stage or size != PUBLISHED:
                raise
            options += [f"{stage}.{key}=x" for _, key in missing]
    raise AssertionError(f"{name} cannot be completed")


#: Chains without ``size=smollm2``, each with the reason.
WITHOUT_SMOLLM2 = {
    "ppo_or_dpo": "an experiment in the tiny world, whose gold reward judges it",
    "compare_training_free": "an experiment in the tiny world, whose gold reward judges it",
    "compare_training_free_smollm2": "its published size is SmolLM2 already",
}


def test_every_recipe_has_a_size_that_runs_anywhere() -> None:
    assert {name for name in names() if "tiny" not in sizes(name)} == set()


def test_every_recipe_has_a_size_on_real_text_or_a_reason() -> None:
    assert {name for name in names() if "smollm2" not in sizes(name)} == set(WITHOUT_SMOLLM2)
