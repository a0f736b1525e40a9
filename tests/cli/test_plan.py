"""``rlhf plan``: the job behind a configuration, the strategies that fit, errors."""

from __future__ import annotations

import json

import pytest

from rlhf_lightning.cli.complete import complete
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.main import main
from rlhf_lightning.cli.plan import OUT
from rlhf_lightning.cli.plan_job import job_of
from rlhf_lightning.cli.plan_options import OPTIONS, read_options

TINY = ["model=tiny_random", "data.batch_size=8"]
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def job(*overrides: str):
    return job_of(compose("train", [*TINY, *overrides]), 20, None, processor=True)


def test_what_a_configuration_trains():
    dpo = job("method=dpo")
    assert (dpo.responses, dpo.reference, dpo.optimizer_bytes, dpo.draws) == (2, "copy", 8, None)
    lora = job("method=dpo", "adapter=lora", "trainer=bf16")
    assert (lora.reference, lora.precision, lora.weight_bytes) == ("shared", "mixed", 4)
    assert 0 < lora.shape.adapter < lora.shape.parameters
    assert job("method=simpo", "optimizer=sgd").reference == "none"
    assert job("method=simpo", "optimizer=sgd").optimizer_bytes == 4


def test_what_a_configuration_draws():
    grpo = job("method=grpo", "data=sentiment_prompts", "reward=length", "rollout.max_new_tokens=33")
    assert grpo.draws is not None
    assert (grpo.response, grpo.responses, grpo.draws.responses, grpo.draws.scoring) == (33, 8, 8, 0)
    ppo = job("method=ppo", "data=sentiment_prompts", "reward=length", "rollout.dtype=bfloat16")
    assert ppo.draws is not None
    assert (ppo.critic, ppo.draws.epochs, ppo.draws.scoring, ppo.draws.copy_bytes) == (True, 4, 2, 2)


def test_what_fits_a_device(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    given = ["model=hub", f"model.name={tmp_path}", "trainer=bf16", "data.batch_size=64", "devices=8"]
    with OUT.capture() as captured:
        assert main(["plan", *given, "device_memory=80GiB", "flops=989T", "--json"]) == 0
    plan = json.loads(captured.get())
    assert plan["parameters"] == 8_030_261_248
    fits = {(one["strategy"], one["gradient_checkpointing"]): one["fits"] for one in plan["strategies"]}
    assert not fits["single", True]
    assert not fits["ddp", True]
    assert fits["fsdp", True]
    sharded = next(one for one in plan["strategies"] if one["strategy"] == "fsdp")
    assert sharded["memory"]["optimizer"] == 8 * plan["parameters"] / 8


def test_the_table_names_what_was_assumed():
    with OUT.capture() as captured:
        assert main(["plan", *TINY, "flops=1e11", "devices=2"]) == 0
    printed = captured.get()
    for text in (
        "single",
        "ddp + checkpointing",
        "fsdp",
        "tokens a second",
        "steps a day",
        "1e+11 FLOP/s",
        "Not counted",
    ):
        assert text in printed


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("devices=two", "devices=two: give a positive number"),
        ("devices=1.5", "must be a whole number"),
        ("device_memory=80GB2", "give a positive number"),
        ("flops=0", "give a positive number"),
        ("efficiency=1.1", "at most 1"),
    ],
)
def test_options_that_are_no_numbers(argument, message):
    with pytest.raises(ConfigError, match=message):
        read_options([argument])


def test_units():
    options, rest = read_options(["device_memory=80GiB", "flops=989T", "bandwidth=3.35TB", "method=ipo"])
    assert (options.device_memory, options.flops, options.bandwidth) == (80 * 2**30, 989e12, 3.35e12)
    assert rest == ["method=ipo"]


def test_steps_that_are_counted_in_tokens():
    with pytest.raises(ConfigError, match="rlhf plan counts groups"):
        job_of(compose("train", [*TINY[:1], "data.max_tokens=1000", "data.batch_size=null"]), 20, None, processor=True)


def test_completion():
    assert {f"{name}=" for name in OPTIONS} <= set(complete("plan "))
    assert "method=dpo" in complete("plan method=dp")
