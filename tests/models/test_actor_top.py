"""The most likely tokens through the actor: every backend and kind of head, and batches with empty slots."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.types import Example, PackedBatch
from tests.helpers.tiny_models import VOCABULARY, tiny_model

GROUPS = [Example([5, 9, 3], [[4, 8, 2], [7, 2]]), Example([6, 1, 1, 9, 30], [[12, 2], [3, 3, 44, 18, 2]])]
REJECTED = torch.tensor([False, True, False, True])
JUDGED = [
    Example([5, 9, 3, 17], [[4, 8, 2], [4, 8, 2]], more_prompts=([5, 9, 3],)),
    Example([], [[], [12, 2]], more_prompts=([6, 1],)),
]


def one_row_logits(model: torch.nn.Module, transform: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits and tokens of the rejected responses, one plain row at a time."""
    logits, tokens = [], []
    for group in GROUPS:
        ids = torch.tensor([group.prompt + group.responses[1]])
        rows = model(input_ids=ids, use_cache=False).logits[0].float() / transform
        logits.append(rows[len(group.prompt) - 1 : -1])
        tokens.append(ids[0, len(group.prompt) :])
    return torch.cat(logits), torch.cat(tokens)


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "granite"])  # soft-cap, bias and scale of the head
def test_equals_plain_rows(family: str, backend: str) -> None:
    model = tiny_model(family)
    wanted = [p for p in model.parameters() if p.requires_grad]
    logits, tokens = one_row_logits(model, 0.7)
    highest, token = logits.sort(dim=-1, descending=True)
    out = Actor(model, backend=backend)(pack(GROUPS), temperature=0.7, top_width=3, top_of=REJECTED)
    top = out.top
    assert top is not None
    torch.testing.assert_close(top.logit, highest[:, :3], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(top.token, token[:, :3])
    assert top.target.tolist() == tokens.tolist()
    assert top.sequence.tolist() == [1, 1, 3, 3, 3, 3, 3]
    assert top.slot(1, 2).sequence.tolist() == [0, 0, 1, 1, 1, 1, 1]
    of_token = logits.gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(top.target_logit, of_token, atol=2e-5, rtol=1e-5)
    expected = torch.autograd.grad((highest[:, :3].sum() - of_token.square().sum()), wanted, allow_unused=True)
    got = torch.autograd.grad((top.logit.sum() - top.target_logit.square().sum()), wanted, allow_unused=True)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, atol=1e-3, rtol=1e-3)


def test_a_model_of_no_known_family() -> None:
    """Through the model's of_token logits."""
    model = tiny_model("mamba")
    logits, tokens = one_row_logits(model)
    top = Actor(model)(pack(GROUPS), top_width=2, top_of=REJECTED).top
    assert top is not None
    torch.testing.assert_close(top.logit, logits.topk(2).values, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(top.target_logit, logits.gather(1, tokens[:, None])[:, 0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"target_modules": ["q_proj"]}])
def test_adapters(options: dict) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, init_lora_weights=False, **options)
    model = get_peft_model(tiny_model("llama", tie_word_embeddings=False), config)
    actor, batch = Actor(model, backend="packed"), pack(GROUPS)
    logits, _ = one_row_logits(model)
    top = actor(batch, top_width=4, top_of=REJECTED).top
    torch.testing.assert_close(top.logit, logits.topk(4).values, atol=2e-5, rtol=1e-5)
    top.logit.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with model.disable_adapter():
        base, _ = one_row_logits(model)
    off = actor(batch, top_width=4, top_of=REJECTED, adapter=False).top
    torch.testing.assert_close(off.logit, base.topk(4).values, atol=2e-5, rtol=1e-5)


def test_everywhere_nowhere_and_not_asked() -> None:
    actor, batch = Actor(tiny_model("llama"), backend="packed"), pack(GROUPS)
    everywhere = actor(batch, top_width=1, statistics=frozenset({"top1"}))
    assert torch.equal(everywhere.top.token[:, 0] == everywhere.top.target, everywhere.top1)
    nowhere = actor(batch, top_width=2, top_of=torch.zeros(4, dtype=torch.bool)).top
    assert nowhere.logit.shape == (0, 2)
    assert nowhere.sum(nowhere.target_logit).tolist() == [0.0] * 4
    assert actor(batch).top is None


def test_bfloat16_autocast() -> None:
    actor, batch = Actor(tiny_model("llama"), backend="packed"), pack(GROUPS)
    exact = actor(batch, top_width=VOCABULARY).top
    with torch.autocast("cpu", torch.bfloat16):
        rounded = actor(batch, top_width=VOCABULARY).top
    assert rounded.logit.dtype == torch.float32
    assert (rounded.logit - exact.logit).abs().max() < 0.05 * exact.logit.abs().max()


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_without_a_judgment(family: str, backend: str) -> None:
    """An empty slot changes no other number, and no gradient."""
    model = tiny_model(family)
    actor = Actor(model, backend=backend)

    def run(batch: PackedBatch) -> tuple[Tensor, ...]:
        model.zero_grad()
        token = actor(batch).token
        token.square().sum().backward()
        return token.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)

    alone = [Example(p, [r]) for p, r in (([5, 9, 3, 17], [4, 8, 2]), ([5, 9, 3], [4, 8, 2]), ([6, 1], [12, 2]))]
    for got, expected in zip(run(pack(JUDGED, kind="judged")), run(pack(alone)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
