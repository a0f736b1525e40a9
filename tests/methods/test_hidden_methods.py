"""Distillation, CoIN and ILQL with real models: backends, cuts, teachers, value heads, decoding by value."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lightning import losses
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.methods import ContextDistillation, Contrastive, KnowledgeDistillation, ValueBased
from rlhf_lightning.methods.slots import only_slot
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.critics.value_actor import ValueActor
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from tests.helpers.hidden_rows import ROWS, context, steps

TINY = TinyRandom(hidden_size=16, intermediate_size=32)
METHODS: dict[str, tuple[type, str]] = {
    "context_distillation": (ContextDistillation, "frozen"),
    "knowledge_distillation": (KnowledgeDistillation, "teacher"),
    "coin": (Contrastive, "none"),
    "ilql": (ValueBased, "none"),
}


def module(
    name: str, source: TinyRandom = TINY, adapter: Lora | None = None, reference: str | None = None, **options: Any
) -> Any:
    """A method around a tiny model, built, its returns standardised where it has any."""
    method, usual = METHODS[name]
    kind = reference or usual
    teacher = replace(source, seed=source.seed + 5) if kind == "teacher" else None
    settings = options.pop("loss", {})
    made = method(
        ModelBuilder(source, adapter, kind, teacher=teacher), partial(getattr(losses, name), **settings), **options
    )
    made.configure_model()
    if isinstance(made, ValueBased):
        made.standardize(torch.tensor([score for row in ROWS["ranked"](8) for score in row.numbers["score"]]))
    return made


def gradients(made: Any, batches: list[Any]) -> dict[str, torch.Tensor]:
    """Of one optimiser step; the loss of each micro-batch is averaged as Lightning does."""
    made.policy.zero_grad()
    for batch in batches:
        (made(batch).loss / len(batches)).backward()
    return {key: p.grad.clone() for key, p in made.policy.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", METHODS)
def test_packed_is_padded(name: str) -> None:
    batch = steps(METHODS[name][0].kind, 6)[0]
    packed, padded = module(name), module(name, replace(TINY, backend="padded"))
    torch.testing.assert_close(packed(batch).loss, padded(batch).loss, atol=1e-5, rtol=1e-5)
    assert_same(gradients(packed, [batch]), gradients(padded, [batch]))


@pytest.mark.parametrize("name", ["context_distillation", "knowledge_distillation", "ilql"])
def test_a_step_does_not_depend_on_how_it_is_cut(name: str) -> None:
    kind = METHODS[name][0].kind
    whole, cut = module(name), module(name)
    assert_same(gradients(whole, steps(kind, 8)), gradients(cut, steps(kind, 8, 4)))


def test_coin_with_hard_negatives_alone_sees_no_other_group() -> None:
    made = module("coin", loss={"in_batch": False, "weight": 1e-3})
    whole = made(steps("paraphrase", 6)[0]).diagnostics
    parts = [made(batch).diagnostics for batch in steps("paraphrase", 6, 3)]
    # Every part has as many instructions as groups ask for; so their contrastive sums add up to the whole's.
    for name in ("cosine/positive", "cosine/gap"):
        joined = torch.cat([part[f"diagnostic/{name}"] for part in parts])
        torch.testing.assert_close(joined, whole[f"diagnostic/{name}"])


@pytest.mark.parametrize("name", METHODS)
def test_validation_has_what_callbacks_read(name: str) -> None:
    made = module(name).eval()
    diagnostics = made(steps(METHODS[name][0].kind, 4)[0]).diagnostics
    assert {"group_loss", "log_prob", "length", "entropy", "top1"} <= diagnostics.keys()
    assert not any(value.requires_grad for value in diagnostics.values())
    assert diagnostics["group_loss"].shape == (4,)


@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_trains_and_so_do_the_heads(name: str) -> None:
    made = module(
        name,
        adapter=Lora(r=2, alpha=4, seed=1),
        reference={"context_distillation": "adapter_off"}.get(name),
    )
    by_name = gradients(made, steps(METHODS[name][0].kind, 4))
    assert any("lora" in key and grad.abs().sum() > 0 for key, grad in by_name.items())
    assert ("value_head.last.weight" in by_name) == (name == "ilql")
    assert not any("base_layer" in key for key in by_name)


# Slots


def test_one_slot_is_what_packing_it_alone_would_be() -> None:
    rows = context(5)
    batch = pack(rows, kind="context")
    for slot in (0, 1):
        alone = pack(
            [
                replace(row, prompt=[row.prompt, *row.more_prompts][slot], responses=row.responses[:1], more_prompts=())
                for row in rows
            ]
        )
        selected = only_slot(batch, slot)
        for field in (
            "ids",
            "positions",
            "prompt_span",
            "response_span",
            "parent",
            "target",
            "source",
            "sequence",
            "index",
        ):
            assert torch.equal(getattr(selected, field), getattr(alone, field)), field
        assert selected.totals == alone.totals
        assert selected.rows == alone.rows


def test_one_slot_of_shared_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="1 prompts with 2 responses: not one each"):
        only_slot(pack([replace(context(1)[0], more_prompts=())]), 0)


# Distillation


def test_context_distillation_by_the_definition() -> None:
    """Whole logits of a plain forward pass, row by row."""
    made, rows = module("context_distillation", loss={"reduction": "sum"}), context(4)
    model = TINY.load()
    expected = []
    for row in rows:
        teacher, student = (
            model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for prompt, response in zip([row.prompt, *row.more_prompts], row.responses, strict=True)
        )
        expected.append((teacher.exp() * (teacher - student)).sum().item())
    losses = made(pack(rows, kind="context")).diagnostics["group_loss"]
    assert losses.tolist() == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 1e-3


def test_most_likely_classes_lose_little_and_less_with_more_of_them() -> None:
    batch = steps("context", 6)[0]
    losses_ = [module("context_distillation", loss={"classes": k})(batch).loss.item() for k in (1, 20, 260, 0)]
    assert losses_[0] < losses_[1] < losses_[3]
    assert losses_[2] == pytest.approx(losses_[3], rel=1e-4)


def test_an_empty_context_leaves_nothing_to_learn() -> None:
    rows = [replace(row, prompt=row.more_prompts[0]) for row in context(4)]
    by_name = gradients(module("context_distillation"), [pack(rows, kind="context")])
    assert max(grad.abs().max() for grad in by_name.values()) < 1e-6


def test_the_teacher_is_the_other_model() -> None:
    made = module("knowledge_distillation")
    weights = dict(made.reference.actor.named_parameters())
    for name, weight in replace(TINY, seed=5).load().named_parameters():
        assert torch.equal(weights[f"model.{name}"], weight)
    assert not any(p.requires_grad for p in made.reference.parameters())
    with pytest.raises(ValueError, match="reference=teacher is another model and cannot follow the policy"):
        made.reference.refresh(made.policy)


def test_a_narrower_student_learns_from_a_wider_teacher() -> None:
    builder = ModelBuilder(TINY, None, "teacher", teacher=TinyRandom(hidden_size=32, seed=3))
    made = KnowledgeDistillation(builder, partial(losses.knowledge_distillation, divergence="jsd"))
    made.configure_model()
    batch, optimizer = steps("supervised", 6)[0], torch.optim.AdamW(made.policy.parameters(), lr=1e-2)
    by_step = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = made(batch).loss
        loss.backward()
        optimizer.step()
        by_step.append(loss.item())
    assert by_step[-1] < 0.7 * by_step[0]


def test_another_vocabulary_is_refused_before_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(TinyRandom, "load", never)
    other = SimpleNamespace(name="other", tokenizer=lambda: SimpleNamespace(get_vocab=lambda: {"a": 0}), load=never)
    builder = ModelBuilder(TINY, None, "teacher", teacher=other)
    with pytest.raises(ValueError, match=r"the teacher other has another vocabulary.*model@reference\.source"):
        builder()
    with pytest.raises(ValueError, match="reference=teacher goes with the teacher's model"):
        ModelBuilder(TINY, None, "teacher")


@pytest.mark.parametrize("reference", ["frozen", "adapter_off"])
def test_nobody_teaches_himself(reference: str) -> None:
    with pytest.raises(ValueError, match=rf"with reference={reference} the policy would be its own teacher"):
        module("knowledge_distillation", adapter=Lora(r=2, seed=1), reference=reference)


def test_cached_log_probs_are_not_enough() -> None:
    with pytest.raises(ValueError, match=r"whole distributions, and reference=cached keeps log-probs"):
        module("context_distillation", reference="cached")


# CoIN


@pytest.mark.parametrize("pooling", ["last", "last_prompt"])
def test_where_states_are_read(pooling: str) -> None:
    made, rows = module("coin", pooling=pooling), ROWS["paraphrase"](2)
    batch = pack(rows, kind="paraphrase")
    _, embedding = made.policy(batch, pooling=pooling)
    model = TINY.load()
    for number, (prompt, response) in enumerate(
        (prompt, response)
        for row in rows
        for prompt, response in zip([row.prompt, *row.more_prompts], row.responses, strict=True)
    ):
        if not response:
            assert not embedding[number].any()
            continue
        ids = prompt + (response if pooling == "last" else [])
        expected = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        torch.testing.assert_close(embedding[number], expected, atol=1e-5, rtol=1e-4)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.pooling='mean'; it can be last or last_prompt"):
        module("coin", pooling="mean")


# ILQL


def test_values_by_the_definition() -> None:
    """Heads applied to the states of a plain forward pass, whole vocabulary and all."""
    made, rows = module("ilql"), ROWS["ranked"](2)
    policy, values = made.policy(pack(rows, kind="ranked"), values=True)
    model, actor = TINY.load(), made.policy
    at = 0
    for row in rows:
        for response in row.responses:
            hidden = model.model(torch.tensor([row.prompt + response])).last_hidden_state[0]
            hidden, action = hidden[len(row.prompt) - 1 : -1], torch.tensor(response)
            here = slice(at, at := at + len(response))
            for head in range(2):
                whole = actor.q_heads[head].all(hidden)
                torch.testing.assert_close(
                    values.q[head, here], whole.gather(1, action[:, None])[:, 0], atol=1e-5, rtol=1e-4
                )
                torch.testing.assert_close(
                    values.q_log_prob[head, here],
                    whole.log_softmax(-1).gather(1, action[:, None])[:, 0],
                    atol=1e-5,
                    rtol=1e-4,
                )
            torch.testing.assert_close(values.value[here], actor.value_head.all(hidden)[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values.target_q, values.q)  # copies, so far
    assert at == len(policy.token)


def test_copies_follow_every_few_steps() -> None:
    made = module("ilql", target_rate=0.25, target_every=3)
    start = [buffer.clone() for buffer in made.policy.target_heads.buffers()]
    with torch.no_grad():
        for parameter in made.policy.q_heads.parameters():
            parameter.add_(1.0)
    for _ in range(2):
        made.follow()
    assert all(torch.equal(now, then) for now, then in zip(made.policy.target_heads.buffers(), start, strict=True))
    made.follow()
    for now, then in zip(made.policy.target_heads.buffers(), start, strict=True):
        torch.testing.assert_close(now, then + 0.25)


def test_copies_are_saved_and_never_trained() -> None:
    made = module("ilql")
    trained = {name for name, _ in made.trained_parameters()}
    assert not any("target" in name for name in trained)
    saved = made.state_dict()
    assert {name for name in saved if "target_heads" in name}
    assert {"steps", "returns.mean", "returns.variance"} <= saved.keys()


def test_the_heads_do_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(1)
    one = ValueActor(TINY.load())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = ValueActor(TINY.load(), width=2, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.q_heads[1].last.weight, other.q_heads[1].last.weight)
    assert not torch.equal(one.q_heads[0].last.weight, one.q_heads[1].last.weight)


def test_decoding_by_value_takes_what_the_definition_says() -> None:
    made, prompt, beta = module("ilql"), [5, 6, 7], 4.0
    for head in made.policy.target_heads:  # values of a size that matters
        head.last.bias.normal_(generator=torch.Generator().manual_seed(int(head.last.bias.numel())))
    model = TINY.load()
    states = model.model(torch.tensor([prompt])).last_hidden_state[:, -1]
    best = torch.stack([head.all(states) for head in made.policy.target_heads]).amin(0)
    score = model(torch.tensor([prompt])).logits[:, -1].log_softmax(-1) + beta * (
        best - made.policy.value_head.all(states)
    )
    assert made.sample([prompt], beta=beta, temperature=0, max_new_tokens=1) == [[int(score.argmax())]]
    with made.policy.guided(beta, 3) as processor:
        made.policy.base(torch.tensor([prompt]))
        kept = processor(torch.tensor([prompt]), model(torch.tensor([prompt])).logits[:, -1])
    assert kept.isfinite().sum() == 3
    torch.testing.assert_close(
        kept[kept.isfinite()].sort().values, score.topk(3).values[0].sort().values, atol=1e-4, rtol=1e-4
    )
    assert not made.policy.base.get_output_embeddings()._forward_pre_hooks


def test_without_beta_samples_are_those_of_the_policy() -> None:
    from rlhf_lightning.models.decoding.generation import generate

    made, prompts = module("ilql", decoding_beta=50.0), [[1, 2], [3]]
    assert made.sample(prompts, beta=0.0, max_new_tokens=6, seed=3) == generate(
        made.policy, prompts, max_new_tokens=6, seed=3
    )
    assert made.sample(prompts, max_new_tokens=6, seed=3) != made.sample(prompts, beta=0.0, max_new_tokens=6, seed=3)


def test_returns_must_be_standardised_and_differ() -> None:
    made = ValueBased(ModelBuilder(TINY, None, "none"), losses.ilql)
    made.configure_model()
    with pytest.raises(ValueError, match=r"returns are not standardised.*module\.standardize\(scores\)"):
        made(steps("ranked", 2)[0])
    with pytest.raises(ValueError, match="every response of the training data has the same score"):
        made.standardize(torch.ones(3))


def test_scores_are_standardised_over_all_responses() -> None:
    made = ValueBased(ModelBuilder(TINY, None, "none"), losses.ilql)
    made.standardize(torch.tensor([[1.0, 3.0], [5.0, float("nan")]]))
    assert made._standardized(torch.tensor([1.0, 3.0, 5.0])).tolist() == pytest.approx([-1.224745, 0.0, 1.224745])


@pytest.mark.parametrize("options", [{"target_rate": 0.0}, {"target_every": 0}, {"decoding_top_k": -1}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"method\.{next(iter(options))}"):
        ValueBased(ModelBuilder(TINY, None, "none"), losses.ilql, **options)


@pytest.mark.parametrize("adapter", [None, Lora(r=2, alpha=4, seed=1, init=False)], ids=["full", "adapter"])
def test_the_exported_policy_has_no_value_heads(adapter: Lora | None, tmp_path: Path) -> None:
    made = module("ilql", adapter=adapter)
    made.export(tmp_path)
    kept = load_file(next(tmp_path.glob("*model.safetensors")))
    assert kept
    assert not any("head." in name.replace("lm_head.", "") or "q_heads" in name for name in kept)
