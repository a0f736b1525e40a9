"""Packed == padded == one row at a time, forward and backward, for every family that is allowed to be packed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models import architectures
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.types import Example, PackedBatch
from tests.helpers.one_row import one_row_at_a_time
from tests.helpers.tiny_models import CONFIGS, UNPACKABLE, VOCABULARY, tiny_model


def examples() -> list[Example]:
    """Groups of unequal lengths, a prompt of one token, and user turns inside a response that are not scored."""
    generator = torch.Generator().manual_seed(3)

    def ids(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [
        Example(ids(7), [ids(9), ids(4)]),
        Example(ids(1), [ids(3), ids(12)]),
        Example(ids(11), [ids(6), ids(8)], [[True] * 2 + [False] * 2 + [True] * 2, [True] * 8]),
    ]


def weights_of(batch: PackedBatch) -> Tensor:
    """Fixed coefficients of either sign, so that no two tokens' gradients are exchangeable."""
    return torch.randn(len(batch.target), generator=torch.Generator().manual_seed(4))


def gradients(model: nn.Module, token: Tensor, batch: PackedBatch) -> dict[str, Tensor]:
    model.zero_grad()
    (token * weights_of(batch)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=2e-4, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_padded_and_single_rows_agree(family: str) -> None:
    model, groups = tiny_model(family), examples()
    batch = pack(groups)
    expected = one_row_at_a_time(model, groups)
    wanted = gradients(model, expected, batch)
    for backend in ("padded", "packed"):
        actor = Actor(model, backend=backend)
        assert actor.backend == backend
        out = actor(batch)
        torch.testing.assert_close(out.token, expected, atol=2e-5, rtol=1e-5)
        assert_same_gradients(gradients(model, out.token, batch), wanted)


def ranked_lists() -> list[Example]:
    """Lists of three, one and two responses, the shorter ones first and last: empty slots inside and at the end."""
    first, second, third = examples()
    third = Example(third.prompt, [*third.responses, second.responses[0]], [*third.loss_mask, [True] * 3])
    lists = [Example(first.prompt, first.responses[:1]), third, second]
    return [replace(group, numbers={"score": [3.0 - slot for slot in range(len(group.responses))]}) for group in lists]


def judged_responses() -> list[Example]:
    """Responses after prompt and judgment and after the prompt alone; the first and the last have no judgment."""
    first, second, third = examples()
    return [
        Example([], [[], first.responses[0]], more_prompts=(first.prompt,)),
        Example(third.prompt, [second.responses[1]] * 2, more_prompts=(second.prompt,)),
        Example([], [[], first.responses[1]], more_prompts=(second.prompt,)),
    ]


@pytest.mark.parametrize("groups", [ranked_lists, judged_responses])
@pytest.mark.parametrize(
    ("family", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("gemma2", "eager"), ("gpt2", "sdpa"), ("opt", "sdpa")],
)
def test_empty_slots_and_several_prompts(family: str, attention: str, groups: Callable[[], list[Example]]) -> None:
    # fails if a response is seen from its group's prompt instead of its own, or an empty slot shifts those behind it
    model, made = tiny_model(family), groups()
    model.set_attn_implementation(attention)
    batch = pack(made, kind="ranked" if groups is ranked_lists else "judged")
    assert not batch.present.all()
    expected = one_row_at_a_time(model, made)
    wanted = gradients(model, expected, batch)
    for backend in ("padded", "packed"):
        out = Actor(model, backend=backend)(batch)
        torch.testing.assert_close(out.token, expected, atol=2e-5, rtol=1e-5)
        assert_same_gradients(gradients(model, out.token, batch), wanted)
        assert (out.length == 0).tolist() == (~batch.present).tolist()


@pytest.mark.parametrize("family", UNPACKABLE)
def test_what_cannot_be_packed_is_recognised_and_padded(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model, groups = tiny_model(family), examples()
    architectures._warned.clear()
    with caplog.at_level(logging.WARNING):
        actor = Actor(model)
        Actor(model)
    assert actor.backend == "padded"
    assert [r.message.count("padded") for r in caplog.records if r.name == architectures.__name__] == [1]  # warned once
    batch = pack(groups)
    expected = one_row_at_a_time(model, groups)
    wanted = gradients(model, expected, batch)
    out = actor(batch)
    torch.testing.assert_close(out.token, expected, atol=2e-5, rtol=1e-5)
    assert_same_gradients(gradients(model, out.token, batch), wanted)
    with pytest.raises(ValueError, match="backend=padded"):
        Actor(model, backend="packed")


def test_every_listed_family_is_tested() -> None:
    tested = {tiny_model(family).config.model_type for family in CONFIGS}
    assert tested == architectures.FAMILIES


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt"])
def test_packing_changes_what_a_wrong_layout_would(family: str) -> None:
    # The responses of a group in the other order are the same tokens elsewhere in the row.
    model = tiny_model(family)
    groups = examples()[:2]
    swapped = [Example(g.prompt, g.responses[::-1]) for g in groups]
    actor = Actor(model, backend="packed")
    first, second = actor(pack(groups)).sum(), actor(pack(swapped)).sum()
    torch.testing.assert_close(first.view(-1, 2), second.view(-1, 2).flip(1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("backend", ["packed", "padded"])
def test_temperature_and_statistics(family: str, backend: str) -> None:
    model, groups = tiny_model(family), examples()
    batch = pack(groups)
    out = Actor(model, backend=backend)(batch, temperature=0.6, statistics=frozenset({"entropy", "top1", "collision"}))
    torch.testing.assert_close(out.token, one_row_at_a_time(model, groups, 0.6), atol=2e-5, rtol=1e-5)
    row = torch.tensor([groups[0].prompt + groups[0].responses[0]])
    log_p = (model(input_ids=row, use_cache=False).logits[0, 6:-1] / 0.6).log_softmax(-1)
    torch.testing.assert_close(out.entropy[:9], -(log_p.exp() * log_p).sum(-1), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(out.collision[:9], (2 * log_p).logsumexp(-1).detach(), atol=2e-5, rtol=1e-5)
    assert out.top1[:9].tolist() == (log_p.argmax(-1) == row[0, 7:]).tolist()
    with pytest.raises(ValueError, match="entropie"):
        Actor(model)(batch, statistics=frozenset({"entropie"}))


def test_untied_and_biased_heads() -> None:
    model, groups = tiny_model("phi"), examples()
    assert model.lm_head.bias is not None
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    batch = pack(groups)
    before = Actor(model)(batch).token
    with torch.no_grad():
        model.lm_head.bias.add_(torch.linspace(-3, 3, VOCABULARY))
    after = Actor(model)(batch).token
    assert (before - after).abs().max() > 0.5
    torch.testing.assert_close(after, one_row_at_a_time(model, groups), atol=2e-5, rtol=1e-5)


def test_step_totals_reach_the_log_probs() -> None:
    batch = pack(examples())
    out = Actor(tiny_model("llama"))(batch)
    assert out.mean_length == batch.totals.mean_length()
    assert out.count == 6
    assert out.length.tolist() == [9, 4, 3, 12, 4, 8]


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"'packd'.*auto, packed or padded"):
        Actor(tiny_model("llama"), backend="packd")
