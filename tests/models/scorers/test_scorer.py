"""The scorer: the same scores packed, padded and one row at a time, in float32, with adapters, and what it keeps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.fingerprint import reference_fingerprint
from rlhf_lightning.models.loading.heads import SavedHead
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.scorers.scorer import ScalarHead, Scorer
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.types import Example
from tests.helpers.tiny_models import CONFIGS, UNPACKABLE, tiny_model

GROUPS = [Example([5, 9, 3], [[4, 8, 2], [7, 2]]), Example([6, 1, 1, 9, 30], [[12, 2], [3, 3, 44, 18, 2]])]
#: A third slot that the first group does not fill, before anything else in the row.
RANKED = [
    Example([5, 9, 3], [[4, 8, 2], [7, 2], []], numbers={"score": [1.0, 0.0, math.nan]}),
    Example([6, 1], [[12, 2], [3, 3, 44, 18, 2], [9, 2]], numbers={"score": [1.0, 0.0, 2.0]}),
]


def one_at_a_time(model: torch.nn.Module, head: ScalarHead, groups: list[Example]) -> list[Tensor]:
    """Scores after each response token, from plain unpadded forward passes."""
    out = []
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([group.prompt + response])
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            out.append(head(hidden[len(group.prompt) :])[:, 0])
    return out


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("family", CONFIGS)
def test_scores_are_those_of_one_row_at_a_time(family: str, backend: str) -> None:
    model = tiny_model(family)
    plain = copy.deepcopy(model)
    scorer = Scorer(model, backend=backend, seed=1)
    batch = pack(GROUPS)
    expected = one_at_a_time(plain, scorer.head, GROUPS)
    torch.testing.assert_close(scorer(batch), torch.stack([row[-1] for row in expected]), atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(scorer(batch, "scored"), torch.cat(expected), atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["packed", "padded"])
def test_scores_before_the_last_token(backend: str) -> None:
    """At a response's last token but one, and at its own prompt's last token where it has no other.

    Fails when the token before it in the packed row is read, which is another response's.
    """
    model = tiny_model("llama")
    plain = copy.deepcopy(model)
    groups = [Example([5, 9, 3], [[4, 8, 2], [2]]), Example([6, 1, 1], [[2], [12, 2]])]
    scorer = Scorer(model, backend=backend, seed=1, pool="before_eos")
    read = []
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([group.prompt + response[:-1]])
            read.append(scorer.head(plain(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1:])[0, 0])
    torch.testing.assert_close(scorer(pack(groups)), torch.stack(read), atol=3e-5, rtol=1e-4)
    padded = scorer(pack([Example(groups[0].prompt, [[4, 8, 2], []])]))
    assert padded[1] == 0, "an empty slot has no score"
    with pytest.raises(ValueError, match=r"method\.head\.pool='first' is none of eos, before_eos"):
        Scorer(model, pool="first")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", UNPACKABLE)
def test_families_that_cannot_be_packed_run_padded(family: str) -> None:
    model = tiny_model(family)
    plain = copy.deepcopy(model)
    scorer = Scorer(model, seed=1)
    assert scorer.backend == "padded"
    expected = torch.stack([row[-1] for row in one_at_a_time(plain, scorer.head, GROUPS)])
    torch.testing.assert_close(scorer(pack(GROUPS)), expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["packed", "padded"])
def test_source_is_the_state_before_a_token(backend: str) -> None:
    """Fails when ``source`` is read at the token itself, or the first token's source is not its prompt's last one."""
    scorer = Scorer(tiny_model("llama"), backend=backend, seed=1)
    batch = pack(GROUPS)
    before, after = scorer(batch, "source"), scorer(batch, "scored")
    first = batch.ragged(after).offset == 0
    torch.testing.assert_close(before[~first], after.roll(1)[~first])
    assert torch.allclose(before[0], before[3], atol=1e-6)  # two responses, one prompt


@pytest.mark.parametrize("backend", ["packed", "padded"])
def test_empty_slots_score_zero_without_gradients(backend: str) -> None:
    scorer = Scorer(tiny_model("llama"), backend=backend, seed=1)
    scores = scorer(pack(RANKED, kind="ranked"))
    full = scorer(pack([Example(g.prompt, [r for r in g.responses if r][:2]) for g in RANKED]))
    assert scores[2] == 0
    torch.testing.assert_close(scores[[0, 1, 3, 4]], full)
    (gradient,) = torch.autograd.grad(scores[2], scorer.head.weight)
    assert not gradient.any()


def test_outputs_are_the_last_dimension() -> None:
    scorer = Scorer(tiny_model("llama"), outputs=3, bias=True, seed=1)
    batch = pack(GROUPS)
    assert scorer(batch).shape == (4, 3)
    assert scorer(batch, "scored").shape == (len(batch.target), 3)
    with torch.no_grad():
        shifted = scorer(batch)
        scorer.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        torch.testing.assert_close(scorer(batch) - shifted, torch.tensor([[1.0, 2.0, 3.0]] * 4))


def test_products_are_float32_under_autocast_and_in_half_precision() -> None:
    """Fails when the head runs in bfloat16: 4.0 and 4.01 would be equal."""
    head = ScalarHead(2, seed=0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 1.0]]))
    hidden = torch.tensor([[4.0, 0.0], [4.0, 0.0078125]], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        scores = head(hidden)
    assert scores.dtype == torch.float32
    assert (scores[1] - scores[0]).item() == 0.0078125
    assert head.bfloat16()(hidden).dtype == torch.float32


@pytest.mark.parametrize(("init", "deviation"), [("rsqrt", 1 / math.sqrt(1025)), ("inverse", 1 / 1025), ("zeros", 0.0)])
def test_the_deviation_of_the_first_weights(init: str, deviation: float) -> None:
    head = ScalarHead(1024, 4, init=init, seed=0)
    assert head.weight.std().item() == pytest.approx(deviation, rel=0.05)
    assert torch.equal(head.weight, ScalarHead(1024, 4, init=init, seed=0).weight)


def test_unit_rows_are_centred_and_of_norm_one() -> None:
    rows = ScalarHead(16, 2, unit_rows=True, seed=0).rows()
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(rows.mean(-1), torch.zeros(2), atol=1e-7, rtol=0)


def test_overlap_is_the_cosine_of_the_rows() -> None:
    scorer = Scorer(tiny_model("llama"), outputs=2, seed=1)
    with torch.no_grad():
        scorer.head.weight.zero_()
        scorer.head.weight[0, 0], scorer.head.weight[1, :2] = 2.0, torch.tensor([-3.0, 4.0])
    assert scorer.overlap().item() == pytest.approx(0.6)
    assert Scorer(tiny_model("llama")).overlap() == 0


def test_log_probs_come_from_the_same_pass() -> None:
    model = tiny_model("gemma2")
    actor = Actor(copy.deepcopy(model))
    scorer = Scorer(model, language_model=True, seed=1)
    calls = []
    scorer.trunk.register_forward_hook(lambda *_: calls.append(1))
    batch = pack(GROUPS)
    scores, log_probs = scorer(batch, log_probs=True)
    assert len(calls) == 1
    torch.testing.assert_close(scores, scorer(batch))
    torch.testing.assert_close(log_probs.token, actor(batch).token)
    with pytest.raises(ValueError, match=r"method\.head.language_model=true"):
        Scorer(tiny_model("llama"))(batch, log_probs=True)


def test_the_vocabulary_head_is_dropped_when_nothing_needs_it() -> None:
    assert not any("lm_head" in name for name, _ in Scorer(tiny_model("mistral")).named_parameters())
    kept = Scorer(tiny_model("mistral"), language_model=True)
    assert any("lm_head" in name for name, _ in kept.named_parameters())


def test_the_head_is_trained_in_full_beside_an_adapter() -> None:
    builder = ModelBuilder(TinyRandom(), Lora(r=2, seed=0), "none")
    scorer = builder(lambda model, backend: Scorer(model, backend=backend, seed=1)).policy
    trained = {name for name, p in scorer.named_parameters() if p.requires_grad}
    assert "head.weight" in trained
    assert all("lora_" in name for name in trained - {"head.weight"})
    batch = pack(GROUPS)
    scorer(batch).square().sum().backward()
    assert scorer.head.weight.grad.any()
    with torch.no_grad():
        for name, p in scorer.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(0))
        assert not torch.allclose(scorer(batch), scorer(batch, adapter=False))


def test_the_head_belongs_to_the_fingerprint_of_what_it_scores() -> None:
    """Fails when two reward models that differ in their heads alone share stored scores."""
    one, other = (Scorer(tiny_model("llama"), seed=seed) for seed in (1, 2))
    assert reference_fingerprint(one) != reference_fingerprint(other)
    assert reference_fingerprint(one) == reference_fingerprint(Scorer(tiny_model("llama"), seed=1))


def test_a_saved_head_is_taken_over() -> None:
    model = tiny_model("llama")
    weight = torch.arange(32.0)[None]
    model.saved_head = SavedHead(weight, torch.tensor([0.5]), mean=2.0, std=4.0)
    plain = copy.deepcopy(model)
    scorer = Scorer(model)
    torch.testing.assert_close(scorer.head.weight, weight)
    assert (scorer.mean, scorer.std) == (1.5, 4.0), "without a bias of its own, the shift is the bias"
    biased = Scorer(copy.deepcopy(plain), bias=True)
    batch = pack(GROUPS)
    torch.testing.assert_close(scorer.normalized(scorer(batch)), biased.normalized(biased(batch)))
    with pytest.raises(ValueError, match=r"method\.head.outputs=1"):
        Scorer(plain, outputs=2)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="outputs >= 1"):
        ScalarHead(4, 0)
    with pytest.raises(ValueError, match="rsqrt"):
        ScalarHead(4, init="ones")
    with pytest.raises(ValueError, match="source"):
        Scorer(tiny_model("llama"))(pack(GROUPS), "first")
