"""States of chosen layers equal transformers' own, and nothing above the last one that is read is computed."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.blocks import decoder_layers
from rlhf_lightning.models.hidden_states.layers import LayerActor
from rlhf_lightning.models.modes import set_gradient_checkpointing
from rlhf_lightning.types import Example, LayerStates
from tests.helpers.tiny_models import CONFIGS, tiny_model

GROUPS = [
    Example([5, 9, 3], [[4, 8, 2], [7, 2]]),
    Example([6, 1, 1, 9, 30], [[12, 2], [3, 3, 44, 18, 2]], [[True, False], [True, False, True, False, True]]),
]


def one_row_at_a_time(model: nn.Module, layer: int, tokens: str) -> Tensor:
    """The states that transformers itself gives, response by response."""
    out = []
    for group in GROUPS:
        for slot, response in enumerate(group.responses):
            states = model(
                input_ids=torch.tensor([group.prompt + response]), output_hidden_states=True, use_cache=False
            ).hidden_states[layer][0]
            counted = group.loss_mask[slot] if group.loss_mask else [True] * len(response)
            positions = [len(group.prompt) + at for at, counts in enumerate(counted) if counts]
            out.append(states[positions if tokens == "response" else [len(group.prompt) - 1]])
    return torch.cat(out)


def states(actor: LayerActor, *layers: int, **options: object) -> LayerStates:
    read_states: LayerStates = actor(pack(GROUPS), layers=layers, **options)
    return read_states


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("family", CONFIGS)
def test_states_of_every_family_are_those_of_transformers(family: str, backend: str) -> None:
    model = tiny_model(family)
    layers = len(decoder_layers(model))
    read = [1, layers - 1] if layers > 2 else [1]
    actor = LayerActor(model, backend=backend)
    for tokens in ("response", "last_prompt"):
        read_states = states(actor, *read, tokens=tokens)
        for layer, state in zip(read_states.layers, read_states.states, strict=True):
            torch.testing.assert_close(state, one_row_at_a_time(model, layer, tokens), atol=2e-5, rtol=1e-5)
    assert len(decoder_layers(model)) == layers  # the model itself has all its layers again


def test_layout_and_mean_length_are_those_of_log_probs() -> None:
    actor = LayerActor(tiny_model("llama"))
    read_states, log_probs = states(actor, 2), actor(pack(GROUPS))
    assert torch.equal(read_states.sequence, log_probs.sequence)
    assert (read_states.count, read_states.mean_length) == (log_probs.count, log_probs.mean_length)
    assert states(actor, 1, tokens="last_prompt").sequence.tolist() == [0, 1, 2, 3]


def test_the_last_layer_is_read_before_the_final_norm() -> None:
    model = tiny_model("llama")
    normed = model.model.norm(states(LayerActor(model), 2).states[0])
    torch.testing.assert_close(normed, one_row_at_a_time(model, 2, "response"), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_what_is_below_and_nothing_above(checkpointing: bool) -> None:
    """With activation checkpointing too, whose second pass of a block may read nothing a second time."""
    plain, model = (tiny_model("llama", num_hidden_layers=4).train() for _ in range(2))
    set_gradient_checkpointing(model, checkpointing)
    weights = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    (one_row_at_a_time(plain, 2, "response")[:7] * weights).sum().backward()
    read_states = states(LayerActor(model), 1, 2)
    (read_states.states[1][:7] * weights).sum().backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None and p.grad.any()}
    actual = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert actual.keys() == expected.keys()
    assert not any(".layers.2." in name or ".layers.3." in name for name in actual)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_pass_ends_at_the_last_layer_that_is_read(family: str) -> None:
    model = tiny_model(family, num_hidden_layers=4, **({"n_layer": 4} if family == "gpt2" else {}))
    entered = []
    for number, block in enumerate(decoder_layers(model), start=1):
        block.register_forward_pre_hook(lambda *_, number=number: entered.append(number))
    states(LayerActor(model), 3, 1)
    assert entered == [1, 2, 3]


def test_the_adapter_is_switched_and_no_layer_is_lost_after_an_error() -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    actor = LayerActor(model)
    on, off = states(actor, 1).states[0], states(actor, 1, adapter=False).states[0]
    assert (on - off).abs().max() > 1e-2
    with model.disable_adapter():
        torch.testing.assert_close(off, one_row_at_a_time(model, 1, "response"), atol=2e-5, rtol=1e-5)
    decoder_layers(model)[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        states(actor, 1)
    assert len(decoder_layers(model)) == 2
    assert len(actor.trunk.layers) == 2


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((0,), r"layers=\[0\]: there is no layer 0. .* 1 .. 2$"),
        ((1, 3), r"there is no layer 3"),
        ((2, 2), "at least one layer, and each once"),
    ],
)
def test_layers_that_do_not_exist_are_refused(layers: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        states(LayerActor(tiny_model("llama")), *layers)


def test_a_batch_without_layers_is_scored_as_ever() -> None:
    actor = LayerActor(tiny_model("llama"))
    assert actor(pack(GROUPS), statistics=frozenset({"entropy"})).entropy is not None
