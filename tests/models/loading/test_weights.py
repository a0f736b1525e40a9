"""Everything that is loaded came from files: anything that would be random or left out is refused by name."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses import bradley_terry
from rlhf_lightning.methods import RewardModel
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.critics.parts import separate_critic
from rlhf_lightning.models.export.classification import export_scorer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from rlhf_lightning.types import Example

GROUPS = [Example([2, 70, 71], [[80, 81, 3], [90, 3]]), Example([2, 75], [[76, 3], [77, 78, 79, 3]])]
Edit = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    TinyRandom().load().save_pretrained(folder)
    TinyRandom().tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Models]:
    """A reward model with an adapter: its adapter's folder, its merged one, and itself."""
    models = ModelBuilder(Pretrained(str(base)), Lora(r=4, seed=0, init=False), "none")(partial(Scorer, seed=1))
    models.policy.mean, models.policy.std = 0.5, 2.0
    folders = [tmp_path_factory.mktemp(form) for form in ("adapter", "merged")]
    for folder, form in zip(folders, ("adapter", "merged"), strict=True):
        export_scorer(models.policy.eval(), models.tokenizer, folder, form=form)
    return *folders, models


def changed(folder: Path, into: Path, edit: Edit = dict, file: str = "model.safetensors", **config: object) -> str:
    """A copy of a folder with other weights or another configuration."""
    for each in folder.iterdir():
        (into / each.name).write_bytes(each.read_bytes())
    save_file(edit(load_file(folder / file)), into / file, metadata={"format": "pt"})
    text = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    (into / "config.json").write_text(json.dumps(text | config))
    return str(into)


def without(part: str) -> Edit:
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


@pytest.mark.parametrize(
    ("edit", "config", "message"),
    [
        (without("layers.1.mlp"), {}, r"3 weights are missing.*layers\.1\.mlp\.down_proj"),
        (without("lm_head"), {}, r"missing and would be random \(lm_head\.weight\)"),
        (dict, {"num_hidden_layers": 1}, r"9 weights have no place in it \(model\.layers\.1"),
        (dict, {"vocab_size": 300}, r"lm_head\.weight \[260, 64\] instead of \[300, 64\]"),
        (lambda w: w | {"v_head.summary.weight": torch.zeros(1, 64)}, {}, r"no place in it \(v_head"),
    ],
    ids=["layer", "head", "too_many_layers", "vocabulary", "value_head"],
)
def test_a_language_model_is_whole(base: Path, tmp_path: Path, edit: Edit, config: dict, message: str) -> None:
    Pretrained(str(base)).load()
    with pytest.raises(ValueError, match=message):
        Pretrained(changed(base, tmp_path, edit, **config)).load()


@pytest.mark.parametrize(
    ("edit", "config", "message"),
    [
        (without("score"), {}, r"missing and would be random \(score\.weight\).*bradley_terry"),
        (without("layers.0.self_attn.q_proj"), {}, r"missing.*layers\.0\.self_attn\.q_proj"),
        (dict, {"id2label": {"0": "bad", "1": "good"}}, r"score\.weight \[1, 64\] instead of \[2, 64\].*num_labels"),
    ],
    ids=["head", "layer", "labels"],
)
def test_a_reward_model_is_whole(
    reward: tuple[Path, Path, Models], tmp_path: Path, edit: Edit, config: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Pretrained(changed(reward[1], tmp_path, edit, **config)).load()


def test_a_reward_models_adapter_continues_with_its_head(base: Path, reward: tuple[Path, Path, Models]) -> None:
    folder, _, models = reward
    again = ModelBuilder(Pretrained(str(base)), Lora(path=str(folder)), "none")(partial(Scorer, seed=7))
    assert torch.equal(again.policy.head.weight, models.policy.head.weight)
    assert (again.policy.mean, again.policy.std) == (0.5, 2.0)
    with torch.no_grad():
        scores = again.policy.eval()(pack(GROUPS))
        torch.testing.assert_close(scores, models.policy.eval()(pack(GROUPS)), atol=1e-6, rtol=1e-6)
    trained = {name for name, parameter in again.policy.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in models.policy.named_parameters() if parameter.requires_grad}


def test_it_is_exported_as_what_it_started_from(base: Path, reward: tuple[Path, Path, Models], tmp_path: Path) -> None:
    again = ModelBuilder(Pretrained(str(base)), Lora(path=str(reward[0])), "none")(Scorer)
    export_scorer(again.policy, again.tokenizer, tmp_path, form="adapter")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (reward[0], tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_critic_takes_the_head_of_a_reward_models_adapter(base: Path, reward: tuple[Path, Path, Models]) -> None:
    policy = ModelBuilder(Pretrained(str(base)), None, "none")().policy
    critic = separate_critic(policy, Pretrained(str(base)), "keep", Lora(path=str(reward[0])), 0)
    assert torch.equal(critic.head.weight, reward[2].policy.head.weight)


def test_a_critic_from_a_language_model_starts_at_zero_and_says_so(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = ModelBuilder(Pretrained(str(base)), None, "none")().policy
    with caplog.at_level(logging.INFO):
        critic = separate_critic(policy, Pretrained(str(base)), "auto", None, 0)
    assert not critic.head.weight.any()
    assert "brings no head: every value starts at 0" in caplog.text


def test_a_reward_models_adapter_is_no_policys(base: Path, reward: tuple[Path, Path, Models]) -> None:
    with pytest.raises(ValueError, match=rf"{reward[0]} holds a reward model.*method=bradley_terry"):
        ModelBuilder(Pretrained(str(base)), Lora(path=str(reward[0])), "none")(Actor)


def test_a_new_head_is_reported(
    base: Path, reward: tuple[Path, Path, Models], caplog: pytest.LogCaptureFixture
) -> None:
    for adapter in (None, Lora(path=str(reward[0]))):
        module = RewardModel(ModelBuilder(Pretrained(str(base)), adapter, "none"), bradley_terry)
        with caplog.at_level(logging.INFO):
            module.configure_model()
            module.configure_model()
    assert [record.getMessage() for record in caplog.records if record.getMessage().startswith("head")] == [
        "head      new: its weights are drawn",
        f"head      that of {reward[0]}",
    ]


ADAPTER = "adapter_model.safetensors"


def test_a_whole_model_is_no_adapter(base: Path, reward: tuple[Path, Path, Models]) -> None:
    """A merged export of an adapter is a model; and so is what it was trained on."""
    for folder in (base, reward[1]):
        with pytest.raises(
            ValueError, match=rf"adapter\.path={folder} holds no adapter .* model=hub model\.name={folder}"
        ):
            ModelBuilder(Pretrained(str(base)), Lora(path=str(folder)), "none")(partial(Scorer, seed=7))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("layers.1.self_attn.q_proj.lora_B"), r"1 weights are missing.*layers\.1\.self_attn\.q_proj\.lora_B"),
        (lambda w: w | {"base_model.model.model.layers.2.mlp.up_proj.lora_A.weight": torch.zeros(4, 64)}, "no place"),
        (lambda w: {k: torch.cat([v, v]) if "lora_A" in k else v for k, v in w.items()}, "size mismatch"),
    ],
    ids=["missing", "another_layer", "another_rank"],
)
def test_an_adapter_is_whole(base: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    saved, other = tmp_path / "saved", tmp_path / "other"
    Lora(r=4, seed=0, init=False).apply(Pretrained(str(base)).load()).save_pretrained(saved)
    other.mkdir()
    Lora(path=str(saved)).apply(Pretrained(str(base)).load())
    with pytest.raises(ValueError, match=f"adapter .* does not fit .*{message}"):
        Lora(path=changed(saved, other, edit, ADAPTER)).apply(Pretrained(str(base)).load())


def test_a_reward_models_adapter_without_its_head(
    base: Path, reward: tuple[Path, Path, Models], tmp_path: Path
) -> None:
    folder = changed(reward[0], tmp_path, without("score"), ADAPTER)
    with pytest.raises(ValueError, match=r"no head .*score\.weight"):
        Lora(path=folder).apply(Pretrained(str(base)).load())
    with pytest.raises(ValueError, match=r"missing and would be random .*score\.weight"):
        Pretrained(folder).load()
