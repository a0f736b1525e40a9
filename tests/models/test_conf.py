"""The yaml files of conf/model, conf/adapter and conf/reference: each composes, becomes its object, and says how."""

from __future__ import annotations

from dataclasses import fields

import pytest

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import ReferenceKind
from rlhf_lightning.models.sources import ModelSource, Pretrained
from tests.models.pairs import pairs

GROUPS = ("model", "adapter", "reference")


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in names(group)])
def test_the_first_line_says_what_it_is_and_how_to_use_it(group, name):
    first = (conf_dir() / group / f"{name}.yaml").read_text().split("\n", 1)[0]
    assert first.startswith("# ")
    assert f"{group}={name}" in first
    assert "rlhf train " in first


@pytest.mark.parametrize("name", names("model"))
def test_every_model_becomes_a_source(name, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    left_out = {"hub": ["model.name=some/model"], "run": [f"model.run={tmp_path}"]}
    overrides = [f"model={name}", *left_out.get(name, [])]
    source = make(compose("train", overrides).model)
    assert isinstance(source, ModelSource)
    assert isinstance(source, Pretrained) == (not name.startswith("tiny"))


def test_every_reference_kind_has_a_file():
    kinds = {compose("train", [f"reference={name}"]).reference.kind for name in names("reference")}
    assert kinds == {*ReferenceKind, "auto"}


def test_every_option_of_lora_is_in_its_file():
    node = compose("train", ["adapter=lora", "seed=5"]).adapter
    assert {key for key in node if key != "_target_"} == {option.name for option in fields(Lora)}
    lora = make(node)
    assert lora == Lora(seed=5)  # the file's defaults are the class's


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_adapters_build_a_policy(adapter):
    if adapter == "qlora":
        pytest.importorskip("bitsandbytes")
    cfg = compose("train", ["model=tiny_random", f"adapter={adapter}", "reference=adapter_off", "adapter.r=2"])
    models = ModelBuilder(make(cfg.model), make(cfg.adapter), cfg.reference.kind)()
    assert models.policy(pairs()).token.equal(models.reference(pairs()).token)


def test_no_adapter_is_none():
    assert make(compose("train", ["adapter=none"]).adapter) is None


def test_the_tiny_model_has_its_defaults():
    from rlhf_lightning.models.sources import TinyRandom

    assert make(compose("train", ["model=tiny_random"]).model) == TinyRandom()
