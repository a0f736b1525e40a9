"""RAHF and LoRRA with real models: what the target is made of, which weights learn, what alpha 0 leaves alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from rlhf_lightning import losses
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.methods import ContrastedModels, Instructed, InstructedRepresentation
from rlhf_lightning.methods.slots import only_slot
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.blocks import decoder_layers
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from tests.helpers.kinds import EXAMPLES, step

TINY = TinyRandom(hidden_size=16, intermediate_size=32, layers=3)
LORA = Lora(r=2, alpha=4, seed=1)


def module(method: type = InstructedRepresentation, *, alpha: float = 5.0, **options: Any) -> Any:
    source, adapter = options.pop("source", TINY), options.pop("adapter", LORA)
    dual = method is ContrastedModels
    reference = options.pop("reference", "teacher" if dual else "auto")
    teacher = options.pop("teacher", replace(source, seed=7) if reference == "teacher" else None)
    made = method(
        ModelBuilder(source, adapter, reference, teacher=teacher),
        partial(losses.representation_fit, alpha=alpha),
        partial(torch.optim.AdamW, lr=0.05),
        **{"layers": [1, 2], **options},
    )
    made.configure_model()
    return made


def trained(made: Any, batches: list[Any]) -> None:
    """One optimiser step."""
    optimizer = made.configure_optimizers()
    for batch in batches:
        (made(batch).loss / len(batches)).backward()
    optimizer.step()


@pytest.mark.parametrize("method", [InstructedRepresentation, ContrastedModels])
def test_alpha_zero_leaves_the_model_as_it_is(method: type) -> None:
    """To the bit, though the gradient of a norm has length 1 as soon as the distance is not exactly 0."""
    made = module(method, alpha=0.0, adapter=replace(LORA, dropout=0.5))
    batch = step(made.kind, 6)[0]
    before = made.policy(batch).token
    for _ in range(3):
        assert made(batch).loss.item() == 0
        trained(made, [batch])
    assert torch.equal(made.policy.eval()(batch).token, before)
    assert all(parameter.isfinite().all() for parameter in made.policy.parameters())


@pytest.mark.parametrize("method", [InstructedRepresentation, ContrastedModels])
def test_every_weight_of_the_adapter_learns_and_none_is_above(method: type) -> None:
    made = module(method, adapter=replace(LORA, target_modules=["q_proj", "v_proj"]))
    batch = step(made.kind, 6)[0]
    trained(made, [batch])  # A has a gradient once B is not zero
    made.policy.zero_grad()
    made(batch).loss.backward()
    gradients = {name: p.grad for name, p in made.policy.named_parameters() if p.requires_grad}
    assert len(gradients) == 2 * 2 * 2
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
    assert not any(p.requires_grad for p in decoder_layers(made.policy)[2].parameters())


@pytest.mark.parametrize("method", [InstructedRepresentation, ContrastedModels, Instructed])
def test_backends_and_cuts_agree(method: type) -> None:
    def made(**options: Any) -> Any:
        if method is not Instructed:
            return module(method, **options)
        source = options.get("source", TINY)
        out = Instructed(ModelBuilder(source, None, "none"), losses.contrastive_instruction)
        out.configure_model()
        return out

    whole, padded = made(), made(source=replace(TINY, backend="padded"))
    batch, parts = step(whole.kind, 8)[0], step(whole.kind, 8, 4)
    torch.testing.assert_close(padded(batch).loss, whole(batch).loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack([whole(part).loss for part in parts]).mean(), whole(batch).loss)


def test_the_target_is_the_base_moved_along_the_difference_of_the_instructions() -> None:
    made = module(layers=[2], alpha=3.0)
    rows = EXAMPLES["instruction"](4)
    batch = pack(rows, kind="instruction")

    def states(slot: int) -> torch.Tensor:
        prompts = [[row.prompt, *row.more_prompts][slot] for row in rows]
        alone = [
            replace(row, prompt=prompt, responses=row.responses[:1], more_prompts=(), numbers={})
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        return made.policy(pack(alone), layers=[2], adapter=False).states[0]

    positive, negative, base = (states(slot) for slot in (0, 1, 2))
    expected = torch.linalg.vector_norm(base - (base + 3 * (positive - negative)), dim=-1)
    torch.testing.assert_close(made(batch).loss, expected.mean())
    assert (positive - negative).abs().max() > 0.01


def test_the_target_of_two_models_moves_away_from_the_bad_one() -> None:
    made = module(ContrastedModels, layers=[1], alpha=2.0)
    batch = step("preference", 4)[0]
    base, positive, negative = made.target(batch)
    bad = made.reference.actor(batch, layers=[1])
    assert torch.equal(negative.states[0], bad.states[0])
    assert positive is base
    assert torch.equal(base.states[0], made.policy(batch, layers=[1], adapter=False).states[0])
    expected = 2 * torch.linalg.vector_norm(base.states[0] - bad.states[0], dim=-1)
    torch.testing.assert_close(made(batch).loss, expected.mean())


def test_each_response_is_matched_with_the_instruction_that_it_obeys() -> None:
    seen = {}

    def loss(match: Any, opposite: Any) -> Any:
        seen.update(match=match, opposite=opposite)
        return losses.contrastive_instruction(match=match, opposite=opposite)

    loss.needs = {"match", "opposite"}  # type: ignore[attr-defined]
    made = Instructed(ModelBuilder(TINY, None, "none"), loss)
    made.configure_model()
    rows = EXAMPLES["instruction"](4)
    made(pack(rows, kind="instruction"))
    for name, slots in (("match", (0, 1)), ("opposite", (1, 0))):
        for number, row in enumerate(rows):
            prompt = [row.prompt, *row.more_prompts][slots[number % 2]]
            single = replace(row, prompt=prompt, responses=row.responses[:1], more_prompts=(), numbers={})
            alone = made.policy(pack([single]))
            states = seen[name].token[seen[name].sequence == number]
            torch.testing.assert_close(states, alone.token, atol=1e-5, rtol=1e-5)


def test_two_slots_are_what_packing_them_alone_would_be() -> None:
    rows = EXAMPLES["instruction"](3)
    both = [replace(row, more_prompts=row.more_prompts[:1], responses=row.responses[:2], numbers={}) for row in rows]
    selected, alone = only_slot(pack(rows, kind="instruction"), 0, 1), pack(both)
    for field in ("ids", "positions", "prompt_span", "response_span", "parent", "target", "source", "sequence"):
        assert torch.equal(getattr(selected, field), getattr(alone, field)), field
    assert selected.totals == alone.totals


def test_layers_follow_the_depth_of_the_model() -> None:
    """Five of 30 blocks are those of the specification for SmolLM2-135M; a model of two blocks has one."""
    made = object.__new__(InstructedRepresentation)
    object.__setattr__(made, "_asked", None)
    object.__setattr__(made, "_shares", (0.3125, 0.375, 0.4375, 0.5, 0.5625))
    assert made._chosen_layers(30) == (9, 11, 13, 15, 17)
    assert made._chosen_layers(32) == (10, 12, 14, 16, 18)
    assert made._chosen_layers(2) == (1,)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            InstructedRepresentation,
            {"adapter": None, "reference": "frozen"},
            "the model without it is its base: adapter=lora",
        ),
        (InstructedRepresentation, {"reference": "cached"}, "reference=cached keeps log-probs"),
        (InstructedRepresentation, {"reference": "none"}, "reference=none"),
        (InstructedRepresentation, {"reference": "teacher"}, "choose reference=auto"),
        (InstructedRepresentation, {"layers": [4]}, r"method.layers=\[4\]: there is no layer 4. .* 1 .. 3"),
        (InstructedRepresentation, {"layers": None, "shares": [1.5]}, r"method.shares=\[1.5\]"),
        (InstructedRepresentation, {"adapter": replace(LORA, blocks=3)}, "adapter.blocks=3: the highest layer .* is 2"),
        (ContrastedModels, {"reference": "auto"}, "name that one with reference=teacher"),
        (ContrastedModels, {"teacher": replace(TINY, layers=2)}, "has 2 layers of width 16 and model tiny_random 3"),
    ],
)
def test_what_cannot_work_is_refused_before_weights_load(
    method: type, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyRandom, "load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=message):
        module(method, **options)


def test_an_adapter_on_blocks_above_is_refused(tmp_path: Any) -> None:
    Lora(r=2, alpha=4, seed=1).apply(TINY.load()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"on blocks above 1, the highest layer that method.layers=\[1\] read"):
        module(layers=[1], adapter=Lora(path=str(tmp_path)))
