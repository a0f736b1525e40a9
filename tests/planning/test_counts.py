"""Counts of a small shape, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.memory import describe
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.planning import Draws, Job, ModelShape, Rates, plan, shape_of
from rlhf_lightning.planning.memory import activations, memory_of
from rlhf_lightning.planning.operations import attention, forward, operations_of, training

CONFIG = LlamaConfig(
    vocab_size=100,
    hidden_size=8,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
#: A layer: q and o 8 x 8, k and v 8 x 4, gate, up and down 8 x 20, two norms of 8.
LAYER = 2 * 64 + 2 * 32 + 3 * 160 + 16
SHAPE = ModelShape(2, 8, 4, 2, 2, 20, 100, 2 * LAYER + 8 + 2 * 800, 800, 800, largest=1600)
JOB = Job(SHAPE, groups=4, prompt=10, response=6, responses=2)


def test_the_shape_is_read_from_a_configuration():
    assert shape_of(CONFIG) == SHAPE
    assert SHAPE.matrices == 2 * LAYER + 8
    assert SHAPE.trainable == SHAPE.parameters
    assert SHAPE.cache_numbers == 2 * 2 * 2 * 2


def test_tied_embeddings_are_one_matrix():
    tied = shape_of(LlamaConfig(**{**CONFIG.to_dict(), "tie_word_embeddings": True}))
    assert (tied.embeddings, tied.head, tied.parameters) == (0, 800, SHAPE.parameters - 800)
    assert tied.matrices == SHAPE.matrices


def test_lora_is_counted_as_rank_times_both_sides():
    # q, o: 8 + 8; k, v: 8 + 4; gate, up, down: 8 + 20
    layer = 2 * 16 + 2 * 12 + 3 * 28
    assert shape_of(CONFIG, Lora(r=3)).adapter == 3 * 2 * layer
    assert shape_of(CONFIG, Lora(r=3, blocks=1)).adapter == 3 * layer
    assert shape_of(CONFIG, Lora(r=3, target_modules=["q_proj"])).adapter == 3 * 2 * 16


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="no attention heads"):
        shape_of(TinyRandom(architecture="mamba").configuration())


def test_tokens_of_a_step():
    assert JOB.tokens == 4 * (10 + 2 * 6)
    assert JOB.response_tokens == 4 * 2 * 6
    assert replace(JOB, accumulate=2).micro_tokens(1) == 2 * 22
    assert JOB.micro_tokens(3) == 2 * 22  # of 4 groups one process has 2


def test_operations():
    pairs = 10 * 10 / 2 + 2 * (6 * 10 + 6 * 6 / 2)  # the prompt once, each response with it
    assert attention(JOB, 2) == 2 * 4 * 2 * (2 * 2) * pairs  # layers, heads, two products of 2 d
    scores = 4 * attention(JOB, 2)
    layers, head = 2 * SHAPE.matrices * 88, 2 * 800 * 48
    assert forward(JOB) == layers + head + scores
    assert training(JOB) == 3 * layers + 4 * head + 3 * scores  # 6 N a token, the head's logits twice
    assert training(replace(JOB, checkpointing=True)) == 4 * layers + 4 * head + 4 * scores


def test_frozen_weights_have_no_gradient():
    job = replace(JOB, shape=replace(SHAPE, adapter=50))
    layers, head, scores = 2 * SHAPE.matrices * 88, 2 * 800 * 48, 4 * attention(JOB, 2)
    assert training(job) == 2 * layers + 3 * head + 3 * scores + 6 * 50 * 88


def test_a_rollout_is_drawn_once_for_all_its_epochs():
    once = operations_of(replace(JOB, draws=Draws(responses=2, scoring=1), reference="copy"))
    four = operations_of(replace(JOB, draws=Draws(responses=2, scoring=1, epochs=4), reference="copy"))
    assert once.reference == once.scoring == forward(JOB)
    assert four.decoding == once.decoding / 4
    assert four.training == once.training
    prompts = 2 * SHAPE.matrices * 4 * 10 + 4 * attention(JOB, 0)
    assert once.prefill == prompts  # of each prompt once
    scores = 4 * 2 * 4 * 2 * (10 + 3)  # at the mean length
    assert once.decoding == 48 * (2 * (SHAPE.matrices + 800) + scores)


def test_memory_of_a_process():
    memory = memory_of(replace(JOB, reference="copy", head_block=2**20), "single", 1)
    weights = 4 * SHAPE.parameters
    assert (memory.weights, memory.reference, memory.gradients, memory.optimizer) == (
        weights,
        weights,
        weights,
        2 * weights,
    )
    # Norms 6 w, attention 2 (heads + kv heads) d, MLP 4 inner.
    assert memory.activations == 4 * 88 * 2 * (6 * 8 + 2 * 6 * 2 + 4 * 20)
    assert memory.head == 3 * 4 * 100 * 48
    assert memory.peak == 5 * weights + memory.activations + memory.head


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all():
    layer = 4 * (6 * 8 + 2 * 6 * 2 + 4 * 20)
    assert activations(replace(JOB, checkpointing=True), 88) == 88 * (layer + 2 * 8 * 4)


def test_sharding_divides_what_is_kept_and_gathers_two_layers():
    whole, shard = (memory_of(replace(JOB, reference="copy"), name, 4) for name in ("ddp", "fsdp"))
    for part in ("weights", "reference", "gradients", "optimizer"):
        assert getattr(shard, part) == getattr(whole, part) / 4
    assert shard.gathered == 2 * 1600 * 4
    assert shard.activations == whole.activations == memory_of(JOB, "single", 1).activations / 4


def test_drawing_and_training_share_their_room():
    drawn = replace(JOB, draws=Draws(responses=2, batch=3, copy_bytes=2, cache_bytes=2))
    memory = memory_of(drawn, "single", 1)
    assert memory.copy == 2 * SHAPE.parameters
    assert memory.cache == 3 * 16 * 16 * 2  # rows of a batch, tokens, numbers of a token
    assert memory.peak == memory.weights + memory.optimizer + memory.copy + (
        memory.gradients + memory.activations + memory.head
    )


def test_seconds():
    rates = Rates(flops=1e6, bandwidth=1e6, efficiency=0.5)
    cost = plan(JOB, "single", 8, rates)
    assert cost.devices == 1
    assert cost.step == pytest.approx(training(JOB) / 0.5e6)
    assert cost.tokens_per_second == pytest.approx(88 / cost.step)
    assert cost.steps_per_day == pytest.approx(86400 / cost.step)
    assert plan(JOB, "ddp", 2, rates).step == pytest.approx(cost.step / 2)
    linked = plan(JOB, "ddp", 2, replace(rates, link=1e5))
    assert linked.seconds["communication"] == pytest.approx(4 * SHAPE.parameters / 1e5)  # 2 (n - 1) / n = 1


def test_decoding_is_bound_by_memory_or_by_products():
    drawn = replace(JOB, draws=Draws(responses=2, batch=8))
    reading = 6 * ((SHAPE.matrices + 800) * 4 + 8 * 13 * 16 * 4)  # of each token of the batch: weights, cache
    slow_memory = plan(drawn, "single", 1, Rates(flops=1e15, bandwidth=1e6))
    assert slow_memory.seconds["drawing"] == pytest.approx(reading / 1e6, rel=1e-3)
    slow_products = plan(drawn, "single", 1, Rates(flops=1e6, bandwidth=1e15, efficiency=1.0))
    assert slow_products.seconds["drawing"] == pytest.approx(
        (operations_of(drawn).decoding + operations_of(drawn).prefill) / 1e6
    )


@pytest.mark.parametrize(("precision", "name"), [("float32", "32-true"), ("mixed", "bf16-mixed")])
@pytest.mark.parametrize("adapter", [None, Lora(r=4, seed=0)], ids=["full", "lora"])
def test_activations_are_near_what_autograd_keeps(precision, name, adapter):
    source = TinyRandom(hidden_size=128, layers=3, heads=4, kv_heads=2, intermediate_size=384)
    measured = describe(ModelBuilder(source, adapter, "none")(), tokens=600, precision=name).activations
    job = Job(shape_of(source.configuration(), adapter), 1, 200, 200, 2, precision=precision)
    assert activations(job, 600) == pytest.approx(measured, rel=0.25)


def test_nothing_is_allocated():
    config = LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, intermediate_size=28672)
    shape = shape_of(config)
    assert shape.parameters > 60e9
    assert torch.empty(0).device.type == "cpu"  # the meta device was left
