"""Choices that commands derive from the rest of the configuration, unless the user makes them."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from rlhf_lightning import compose
from rlhf_lightning.cli.announce import _loss, _method, method_name
from rlhf_lightning.cli.build import make_data, make_models, reference_kind, runs_padded
from rlhf_lightning.cli.instantiate import make

TINY = ["model=tiny_random", "data=json", "data.source.path=none.jsonl"]


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], "frozen"),
        (["adapter=lora"], "auto"),
        (["adapter=qlora"], "auto"),
        (["adapter=lora", "reference=frozen"], "frozen"),
        (["reference=cached", "adapter=lora"], "cached"),
        (["adapter=lora", "adapter.path=trained"], "auto"),
        (["method=simpo"], "none"),
        (["method=simpo", "reference=frozen"], "frozen"),
        (["method=simpo", "reference=cached"], "none"),
        (["method=simpo", "adapter=lora"], "none"),
        (["method=simpo", "adapter=lora", "reference=adapter_off"], "adapter_off"),
        (["method=mpo", "adapter=lora"], "auto"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_reference(command, overrides, kind):
    """``auto`` without an adapter is a copy; what an adapter does is known once its weights are there."""
    cfg = compose(command, [*TINY, *overrides], check=False)
    assert make_models(cfg, reference_kind(cfg, make(cfg.method))).reference == kind


def test_an_adapter_that_a_run_starts_from_cannot_be_switched_off_for_the_reference():
    """Off, it would not be where the run starts; ``auto`` sees that once the weights are there."""
    overrides = [*TINY, "adapter=lora", "paths.output_dir=run"]
    cfg = compose("train", [*overrides, "ckpt_path=sft/last.ckpt", "reference=adapter_off"], check=False)
    with pytest.raises(ValueError, match="choose reference=frozen"):
        reference_kind(cfg, make(cfg.method))


@pytest.mark.parametrize(
    ("overrides", "padded"),
    [
        ([], False),
        (["model.backend=padded"], True),
        (["model.architecture=mamba"], True),
        (["model.architecture=mamba", "data.loading.padded=false"], False),
        (["data.loading.padded=true"], True),
    ],
)
def test_padded(tmp_path, overrides, padded):
    (tmp_path / "pairs.jsonl").touch()
    cfg = compose("train", [*TINY, f"data.source.path={tmp_path}/pairs.jsonl", *overrides])
    models = make_models(cfg, "frozen")
    assert make_data(cfg, models, "preference").batching.padded is padded


@pytest.mark.parametrize(("family", "padded"), [("llama", False), ("bloom", True)])
def test_padded_by_the_config_of_a_folder(tmp_path, family, padded):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    cfg = compose("train", [*TINY, "model=hub", f"model.name={tmp_path}"])
    assert runs_padded(make_models(cfg, "frozen")) is padded


def test_a_weighted_sum_is_shown_with_its_terms():
    shown = _loss(make(compose("train", [*TINY, "method=mpo"]).method).keywords["loss"])
    assert shown == (
        "0.8 dpo(beta=0.1) + 0.2 bco_pair(beta=0.1, delta=running) + 1.0 preferred_ft(reduction=token_mean)"
    )


def test_a_run_names_the_method_that_was_chosen(tmp_path):
    """As Hydra noted it; what evaluates a run has that run's method unless it asks for another."""

    def noted(folder, method, *asked):
        (tmp_path / folder / ".hydra").mkdir(parents=True)
        hydra = {"runtime": {"choices": {"method": method}}, "overrides": {"task": list(asked)}}
        (tmp_path / folder / ".hydra/hydra.yaml").write_text(json.dumps({"hydra": hydra}))
        return str(tmp_path / folder)

    run, plain = noted("run", "grpo"), {"output_dir": str(tmp_path / "by_hand")}
    evaluating = noted("evaluating", "dpo", "run=run"), noted("other", "ipo", "method=ipo", "run=run")
    assert method_name(OmegaConf.create({"paths": {"output_dir": run}})) == "grpo"
    assert [method_name(OmegaConf.create({"paths": {"output_dir": f}, "run": run})) for f in evaluating] == [
        "grpo",
        "ipo",
    ]
    assert method_name(OmegaConf.create({"paths": plain})) is None
    loss = make(compose("train", [*TINY, "method=dapo"]).method).keywords["loss"]
    assert _method(OmegaConf.create({"paths": {"output_dir": run}}), loss).startswith("grpo: ppo(ratio=token, ")
    assert _method(OmegaConf.create({"paths": plain}), loss).startswith("ppo(ratio=token, ")
    dpo = make(compose("train", [*TINY, "method=dpo"]).method).keywords["loss"]
    assert _method(OmegaConf.create({"paths": {"output_dir": evaluating[0]}}), dpo).startswith("dpo(beta=0.1")
