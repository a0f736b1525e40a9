"""Steered models: directions, operators, where they are respected, and what is refused before weights load."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.decoding.generation import generate
from rlhf_lightning.models.export.cast_copy import CastCopy
from rlhf_lightning.models.export.policy import check_export
from rlhf_lightning.models.fingerprint import reference_fingerprint
from rlhf_lightning.models.hidden_states.layers import LayerActor
from rlhf_lightning.models.hidden_states.steering import read_header, write_vectors
from rlhf_lightning.models.modes import set_gradient_checkpointing
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.ops.steering import direction, steered
from rlhf_lightning.rollout.weights import policy_weights
from rlhf_lightning.types import Example

TINY = TinyRandom(hidden_size=16, intermediate_size=32, layers=3)
GROUPS = [Example([5, 9, 3], [[4, 8, 2], [7, 2]]), Example([6, 1], [[12, 2]])]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(3)
    path = tmp_path / "v.safetensors"
    write_vectors(path, {layer: torch.randn(16, generator=draw) for layer in (1, 2)}, {"model": "tiny_random"})
    return path


def actor(file: Path | None, source: TinyRandom = TINY, **options: Any) -> LayerActor:
    steering = None if file is None else {"path": str(file), **options}
    return LayerActor(replace(source, steering=steering).load(), backend=source.backend)


# Directions and operators, by hand


def test_golden_directions() -> None:
    """Positive (1, 1), (3, 1), negative (0, 0), (2, -2): the means differ by (1, 2)."""
    positive, negative = torch.tensor([[1.0, 1.0], [3.0, 1.0]]), torch.tensor([[0.0, 0.0], [2.0, -2.0]])
    assert direction(positive - negative).tolist() == [1.0, 2.0]


def test_golden_operators() -> None:
    state, vector = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0])
    assert steered(state, vector, "project_out").tolist() == pytest.approx([0.8, -0.4])
    assert steered(state, vector, "linear", 2.0).tolist() == [3.0, 4.0]
    assert steered(-state, vector, "piecewise", 2.0).tolist() == [-3.0, -4.0]
    assert steered(state, vector, "linear", 2.0, rescale=True).tolist() == pytest.approx([0.6, 0.8])


def test_the_first_component_points_to_the_positive_states() -> None:
    """Differences (1, 3), (1, -1), (1, 1) lie along the second axis; their mean is (1, 1), of length sqrt 2."""
    differences = torch.tensor([[1.0, 3.0], [1.0, -1.0], [1.0, 1.0]])
    for sign in (1.0, -1.0):
        assert direction(sign * differences, "pca").tolist() == pytest.approx([0.0, sign * 2**0.5], abs=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        direction(differences[:1], "pca")


def test_a_random_direction_has_the_length_of_the_mean_and_its_seed() -> None:
    differences = torch.tensor([[3.0, 4.0, 0.0]])
    one, same, other = (direction(differences, "random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.linalg.vector_norm(one).item() == pytest.approx(5.0)


def test_projecting_out_leaves_nothing_along_the_direction() -> None:
    draw = torch.Generator().manual_seed(0)
    state, vector = torch.randn(5, 8, generator=draw), torch.randn(8, generator=draw)
    once = steered(state, vector, "project_out")
    assert (once @ vector).abs().max() < 1e-5
    torch.testing.assert_close(steered(once, vector, "project_out"), once)


# Models


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("operator", ["linear", "piecewise", "project_out"])
def test_states_are_moved_after_their_block(file: Path, operator: str, backend: str) -> None:
    source = replace(TINY, backend=backend)
    plain, moved = actor(None, source), actor(file, source, operator=operator, coefficient=0.7, layers=[2])
    batch = pack(GROUPS)
    before, after = (model(batch, layers=[1, 2]) for model in (plain, moved))
    vector = _vector(moved, 2)
    assert torch.equal(before.states[0], after.states[0])
    torch.testing.assert_close(after.states[1], steered(before.states[1], vector, operator, 0.7))
    assert not torch.allclose(plain(batch).token, moved(batch).token)


def _vector(model: LayerActor, layer: int) -> Tensor:
    vector: Tensor = model.base.model.layers[layer - 1].steering_vector
    return vector


@pytest.mark.parametrize("operator", ["linear", "piecewise", "project_out"])
def test_coefficient_zero_is_the_model_as_it_is(file: Path, operator: str) -> None:
    batch = pack(GROUPS)
    same = actor(file, operator=operator, coefficient=0)
    assert torch.equal(actor(None)(batch).token, same(batch).token)
    assert reference_fingerprint(same) == reference_fingerprint(actor(None))
    check_export(same, TINY.tokenizer(), "auto")


def test_the_digest_behind_cached_log_probs_knows_all_of_it(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "w.safetensors"
    write_vectors(other, {1: torch.ones(16), 2: torch.ones(16)}, {})
    models = [
        actor(None),
        actor(file),
        actor(other),
        actor(file, coefficient=2),
        actor(file, operator="piecewise"),
        actor(file, layers=[1]),
        actor(file, rescale=True),
    ]
    assert len({reference_fingerprint(model) for model in models}) == len(models)
    assert reference_fingerprint(actor(file)) == reference_fingerprint(models[1])


def test_generation_is_steered(file: Path) -> None:
    plain, moved = actor(None), actor(file, coefficient=8.0)
    responses = [generate(model, [[5, 9, 3]], max_new_tokens=6, temperature=0) for model in (plain, moved)]
    assert responses[0] != responses[1]
    expected = moved.base.generate(torch.tensor([[5, 9, 3]]), max_new_tokens=6, do_sample=False)
    assert responses[1][0] == expected[0, 3:].tolist()


def test_copies_adapters_and_checkpointing_keep_it(file: Path) -> None:
    batch = pack(GROUPS)
    source = replace(TINY, steering={"path": str(file)})
    models = ModelBuilder(source, Lora(r=2, seed=1), "frozen")(LayerActor)
    expected = actor(file)(batch).token
    assert torch.equal(models.policy(batch).token, expected)
    assert torch.equal(models.policy(batch, adapter=False).token, expected)
    assert torch.equal(models.reference(batch).token, expected)
    assert torch.equal(copy.deepcopy(models.policy)(batch).token, expected)
    set_gradient_checkpointing(models.policy.base, True)
    models.policy.train()(batch).token.sum().backward()
    assert all(p.grad is not None for p in models.policy.parameters() if p.requires_grad)
    assert not any("steering" in name for name in models.policy.state_dict())


def test_the_rollout_copy_of_another_dtype_keeps_it(file: Path) -> None:
    moved = actor(file, coefficient=8.0)
    cast = CastCopy(moved, torch.float32)
    cast.refresh(moved)
    ids = torch.tensor([[5, 9, 3, 4]])
    torch.testing.assert_close(cast.model(ids).logits, moved.base(ids).logits)


def test_half_precision_moves_states_in_half_precision(file: Path) -> None:
    model = actor(file).to(torch.bfloat16)
    assert model(pack(GROUPS), layers=[1]).states[0].dtype == torch.bfloat16


def test_what_has_the_weights_alone_is_refused(file: Path) -> None:
    for form in ("auto", "merged"):
        with pytest.raises(ValueError, match=r"moves the states of layers \[1, 2\].*callbacks.export=null"):
            check_export(actor(file), TINY.tokenizer(), form)
    with pytest.raises(ValueError, match=r"vLLM would sample from another model\. Set rollout=transformers"):
        policy_weights(actor(file))


# What is refused before weights load


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficent": 2}, "model.steering.coefficent: there is no such option"),
        ({"path": None}, "model.steering.path=FILE is missing"),
        ({"path": "nowhere"}, "model.steering.path=nowhere: there is no such file"),
        ({"coefficient": "two"}, "model.steering.coefficient='two' is not a finite number"),
        ({"coefficient": float("nan")}, "is not a finite number"),
        ({"operator": "ablate"}, "model.steering.operator='ablate'; it can be linear, piecewise, project_out"),
        ({"rescale": "yes"}, "model.steering.rescale='yes'"),
        ({"layers": [3]}, r"has no direction for layer 3; it has those of \[1, 2\]"),
        ({"layers": [0]}, r"model.steering.layers=\[0\]: there is no layer 0"),
    ],
)
def test_options_are_checked(
    file: Path, options: Mapping[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyRandom, "_load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=message):
        ModelBuilder(replace(TINY, steering={"path": str(file), **options}))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            replace(TINY, hidden_size=32),
            "holds directions of width 16, made for tiny_random, and model tiny_random has",
        ),
        (replace(TINY, layers=1), r"model.steering.layers=\[1, 2\]: there is no layer 2. .* 1 .. 1"),
    ],
)
def test_a_model_of_another_shape_is_refused(
    file: Path, source: TinyRandom, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyRandom, "_load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=message):
        ModelBuilder(replace(source, steering={"path": str(file)}))
    with pytest.raises(ValueError, match=message):
        ModelBuilder(
            replace(source, steering=None), None, "teacher", teacher=replace(source, steering={"path": str(file)})
        )


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors")
    save_file({"layer.1": torch.zeros(16)}, tmp_path / "weights")
    for name, message in (("text", "is no safetensors file"), ("weights", "it is no file of rlhf steer build")):
        with pytest.raises(ValueError, match=message):
            read_header(tmp_path / name, "path")


def test_a_direction_of_nothing_is_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "zero", {1: torch.zeros(16)}, {})
    with pytest.raises(ValueError, match="the direction of layer 1 is zero or not finite"):
        actor(tmp_path / "zero")
