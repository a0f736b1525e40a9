"""Every process reads its share of a model's files, and has bit for bit what it would have had from a whole load."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from rlhf_lightning.models import shares
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.critics.critic import ActorCritic
from rlhf_lightning.models.export.classification import export_scorer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models, shard, sharded
from rlhf_lightning.models.roles.reference import FrozenCopy
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sharding import reshard, whole
from rlhf_lightning.models.sources import ARCHITECTURES, Pretrained, TinyRandom
from tests.helpers.jobs import ranks
from tests.models.pairs import pairs

Build = Callable[[], Models]


@dataclass(frozen=True)
class FakeTrainer:
    precision: str = "32-true"
    strategy: Any = None


def saved(folder: Path, *, split: bool = False, **options: Any) -> str:
    """A folder with a model, in one file or in several with an index."""
    source = TinyRandom(**options)
    model: Any = source.load()
    model.save_pretrained(folder, **({"max_shard_size": "60KB"} if split else {}))
    source.tokenizer().save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").is_file() == split
    return str(folder)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes of every read of a file."""
    read: list[int] = []
    rows = shares.Reader.rows

    def counting(self: shares.Reader, *args: Any) -> torch.Tensor:
        tensor = rows(self, *args)
        read.append(tensor.nbytes)
        return tensor

    shares.Reader.rows = counting  # type: ignore[method-assign]
    try:
        yield read
    finally:
        shares.Reader.rows = rows  # type: ignore[method-assign]


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, also those that are not saved."""
    reshard(module)
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    return {name: whole(value) for name, value in tensors.items()}


def same(one: nn.Module, other: nn.Module) -> None:
    expected, present = state(one), state(other)
    assert expected.keys() == present.keys()
    for name, value in expected.items():
        assert value.dtype == present[name].dtype, name
        assert torch.equal(value, present[name]), name
    trained = [{name for name, p in module.named_parameters() if p.requires_grad} for module in (one, other)]
    assert trained[0] == trained[1]


def stored(module: nn.Module) -> int:
    """Bytes of this process's parameters."""
    local = (p.to_local() if hasattr(p, "to_local") else p for p in module.parameters())
    return sum(p.numel() * p.element_size() for p in local)


def compare(build: Build, *, shared: bool = True) -> None:
    """Models of which this process has read its share equal those that it loads whole and then shards."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plain = build()
    in_all = stored(plain.policy)
    shard(plain, mesh)
    with counted() as read:
        models = sharded(build, {"data_parallel": mesh}, FakeTrainer())
    copies = isinstance(models.reference, FrozenCopy)
    assert bool(read) == shared
    if shared:
        assert sum(read) <= 0.54 * in_all * (1 + copies)
    assert stored(models.policy) <= 0.54 * in_all
    same(plain.policy, models.policy)
    if copies:
        same(plain.reference, models.reference)
    if plain.start is not None:
        assert models.start.is_base == plain.start.is_base
        models.start.check(plain.start.state())
    assert models.policy.base.config.to_dict() == plain.policy.base.config.to_dict()
    assert type(models.reference) is type(plain.reference)
    if isinstance(models.policy, Actor) and not isinstance(models.policy, ActorCritic):
        generation = [each.policy.base.generation_config.to_dict() for each in (models, plain)]
        assert generation[0] == generation[1]
    stepped(plain), stepped(models)
    same(plain.policy, models.policy)


def stepped(models: Models) -> None:
    """Train a policy for a step."""
    policy = models.policy.train()
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0)
    output = policy(pairs(3), values=True)[1] if isinstance(policy, ActorCritic) else policy(pairs(3))
    (output if isinstance(output, torch.Tensor) else output.sum()).square().mean().backward()
    optimizer.step()


def builder(folder: str, adapter: Lora | None = None, reference: str = "frozen", **options: Any) -> ModelBuilder:
    return ModelBuilder(Pretrained(folder, **options), adapter, reference)


def test_a_policy_and_its_frozen_copy_are_read_by_halves(tmp_path):
    folder = saved(tmp_path, split=True, layers=3)
    assert ranks(2, compare, builder(folder)) == [0, 0]


LORA = Lora(r=2, seed=3)
CASES: dict[str, Any] = {
    "tied": ({"tie_embeddings": True}, {}, {}),
    "one_file": ({}, {}, {}),
    "uneven": ({"hidden_size": 20, "heads": 2, "kv_heads": 1, "intermediate_size": 27}, {}, {}),
    "half_precision": ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}, {}),
    "adapter": ({"tie_embeddings": True}, {"adapter": LORA, "reference": "auto"}, {}),
    "moved_adapter": ({}, {"adapter": Lora(r=2, seed=3, init=False), "reference": "auto"}, {}),
    "head": ({}, {"reference": "none"}, {"actor": partial(Scorer, seed=1)}),
    "separate_critic": ({}, {}, {"actor": partial(ActorCritic, kind="separate")}),
    "hydra_critic": ({"layers": 3}, {}, {"actor": partial(ActorCritic, kind="hydra", layers=1)}),
}


def made(options: ModelBuilder, actor: Any = Actor) -> Models:
    return options(actor)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_shares_are_those_of_a_whole_load(name, tmp_path):
    model, options, actor = CASES[name]
    build = partial(made, builder(saved(tmp_path, **model), **options), **actor)
    assert ranks(2, compare, build) == [0, 0]


def loaded(source: Pretrained) -> Any:
    with shares.reading_shares():
        return source.load()


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - {"gpt_neox"}))  # see WHOLE
def test_an_empty_model_is_the_loaded_one_but_for_its_weights(architecture, tmp_path):
    source = Pretrained(saved(tmp_path, architecture=architecture))
    plain, empty = source.load(), loaded(source)
    assert type(empty) is type(plain)
    assert empty.config.to_dict() == plain.config.to_dict()
    assert empty.generation_config.to_dict() == plain.generation_config.to_dict()
    assert not empty.training
    assert empty.name_or_path == plain.name_or_path
    buffers = dict(plain.named_buffers())
    assert buffers.keys() == dict(empty.named_buffers()).keys()
    for name, buffer in empty.named_buffers():
        assert buffer.dtype == buffers[name].dtype
        assert torch.equal(buffer, buffers[name]), name
    weights = dict(plain.named_parameters(remove_duplicate=False))
    pieces = {(id(part), name): piece for part, name, piece in shares.unread(empty)}
    for path, weight in empty.named_parameters(remove_duplicate=False):
        owner, _, name = path.rpartition(".")
        assert weight.is_meta
        with shares.Reader() as reader:
            rows = reader.rows(pieces[id(empty.get_submodule(owner)), name], 1, 3)
        assert torch.equal(rows, weights[path][1:3])


def test_a_reward_model_keeps_its_head(tmp_path):
    folder = tmp_path / "reward"
    reward = ModelBuilder(TinyRandom(), None, "none")(partial(Scorer, seed=1, bias=True))
    export_scorer(reward.policy.eval(), reward.tokenizer, folder)
    source = Pretrained(str(folder))
    plain, empty = source.load().saved_head, loaded(source)
    assert shares.unread(empty)
    assert torch.equal(empty.saved_head.weight, plain.weight)
    assert (empty.saved_head.mean, empty.saved_head.origin) == (plain.mean, plain.origin)


def without(folder: Path, ending: str, **config: Any) -> None:
    """Edit the one file of a folder, and its configuration."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if not name.endswith(ending)}, folder / "model.safetensors")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | config))


@pytest.mark.parametrize(
    ("ending", "config", "message"),
    [
        ("layers.1.mlp.up_proj.weight", {}, r"1 weights are missing.*layers\.1\.mlp\.up_proj"),
        ("nothing", {"num_hidden_layers": 1}, r"9 weights have no place in it \(model\.layers\.1"),
        ("nothing", {"vocab_size": 300}, r"lm_head\.weight \[260, 64\] instead of \[300, 64\]"),
    ],
    ids=["missing", "too_many", "shape"],
)
def test_files_that_lack_weights_are_refused_by_name(tmp_path, ending, config, message):
    folder = saved(tmp_path)
    without(tmp_path, ending, **config)
    with pytest.raises(ValueError, match=message):
        loaded(Pretrained(folder))


def pickled(folder: Path) -> None:
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()


WHOLE: dict[str, tuple[dict[str, Any], dict[str, Any], Any, str]] = {
    "pissa": ({}, {"adapter": Lora(r=2, seed=3, init="pissa_niter_4")}, Actor, "adapter.init=pissa_niter_4"),
    "dora": ({}, {"adapter": Lora(r=2, seed=3, dora=True)}, Actor, "use_dora"),
    "head": ({}, {"adapter": Lora(r=2, seed=3, modules_to_save=["lm_head"])}, Actor, "modules_to_save"),
    "biases": ({}, {"adapter": Lora(r=2, seed=3, options={"bias": "all"})}, Actor, "bias=all"),
    "rows": ({"config": {"vocab_size": 258}}, {}, Actor, "tokenizer has tokens"),
    "names": ({"architecture": "gpt_neox"}, {}, Actor, "differ in names"),
    "critic": ({}, {"adapter": LORA}, partial(ActorCritic, kind="adapter"), "made of other weights"),
    "pickle": ({}, {}, Actor, "no safetensors files"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_read_by_shares_is_loaded_whole_with_a_sentence(name, tmp_path, caplog):
    model, options, actor, sentence = WHOLE[name]
    folder = saved(tmp_path, **model)
    if name == "pickle":
        pickled(tmp_path)
    build = builder(folder, **options)
    with caplog.at_level(logging.INFO, "rlhf_lightning"), shares.reading_shares():
        torch.manual_seed(0)
        models = build(actor)
    torch.manual_seed(0)
    same(build(actor).policy, models.policy)
    assert not shares.unread(models.policy)
    assert [record.message for record in caplog.records if sentence in record.message]


def test_weights_of_another_run_are_put_into_whole_ones(tmp_path):
    seen: list[bool] = []
    build = builder(saved(tmp_path))
    build.start = lambda policy, start: seen.append(any(p.is_meta for p in policy.parameters()))
    with shares.reading_shares():
        build()
    assert seen == [False]
