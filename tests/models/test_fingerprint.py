"""The digest that decides whether cached reference log-probs may be used: what must and must not change it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch

from rlhf_lightning.models import fingerprint
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.fingerprint import reference_fingerprint
from rlhf_lightning.models.loading.naming import plain_name
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from tests.models.adapters.test_merging import KINDS

SOURCE = TinyRandom()


def of(source=SOURCE, adapter=None, **options):
    model = source.load() if adapter is None else adapter.apply(source.load())
    return reference_fingerprint(model, **options)


# Hits


def test_is_the_same_in_another_process():
    root = Path(__file__).parents[2]
    code = (
        "from rlhf_lightning.models import TinyRandom, reference_fingerprint as f; import torch; torch.manual_seed(99);"
        "print(f(TinyRandom().load()))"
    )
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == of()


def test_wrapping_does_not_change_it():
    policy = ModelBuilder(SOURCE, None, "none")().policy
    assert reference_fingerprint(policy) == of()
    assert reference_fingerprint(ModelBuilder(SOURCE, None, "none", compile=True)().policy) == of()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modules_to_save": ["lm_head"]},
        {"options": {"trainable_token_indices": [1, 2]}},
        {"dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["lora", "modules_to_save", "token_deltas", "dora", "embeddings"],
)
def test_an_adapter_that_is_off_does_not_count(options):
    # TRL 1.16 hashes LoRA's random start and recomputes the reference for every seed.
    for seed in (0, 1):
        model = Lora(r=2, seed=seed, **options).apply(SOURCE.load())
        assert reference_fingerprint(model, adapter=False) == of()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(1)
        assert reference_fingerprint(model, adapter=False) == of()


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_any_kind(kind):
    """Off, an adapter is its base, trained or not; on, each of its weights counts. Fails where names of LoRA decide."""
    torch.manual_seed(0)
    model = peft.get_peft_model(SOURCE.load(), KINDS[kind]())
    digests = {of(), reference_fingerprint(model)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for count, parameter in enumerate(trained[:2], start=3):
        assert reference_fingerprint(model, adapter=False) == of()
        with torch.no_grad():
            parameter.add_(0.5)
        digests.add(reference_fingerprint(model))
        assert len(digests) == count
    assert reference_fingerprint(model, adapter=False) == of()


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_an_adapter_at_its_start_does_not_depend_on_its_seed(options):
    first, second = (of(adapter=Lora(r=2, seed=seed, **options)) for seed in (0, 1))
    assert first == second


def test_a_fresh_lora_is_its_base():
    assert of(adapter=Lora(r=2)) == of()


def test_where_it_was_loaded_from_does_not_count(tmp_path):
    for name in ("one", "two"):
        SOURCE.load().save_pretrained(tmp_path / name)
        assert of(Pretrained(str(tmp_path / name))) == of()


def test_special_tokens_and_dropout_options_do_not_count():
    aligned = ModelBuilder(SOURCE, None, "none", gradient_checkpointing=True, backend="padded")().policy
    aligned.base.config.pad_token_id = 77
    aligned.base.generation_config.temperature = 0.3
    assert reference_fingerprint(aligned.train()) == of()


# Misses


def test_other_weights():
    model = SOURCE.load()
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert reference_fingerprint(model) != of()
    assert of(TinyRandom(seed=1)) != of()


def test_weights_that_changed_places():
    model = SOURCE.load()
    first, second = (layer.mlp.up_proj.weight for layer in model.model.layers)
    first.data, second.data = second.data, first.data
    assert reference_fingerprint(model) != of()


def test_dtype_and_precision():
    digests = [of(), of(TinyRandom(dtype="bfloat16")), of(precision="bf16-mixed"), of(precision="bf16-true")]
    assert len(set(digests)) == 4


def test_a_trained_adapter():
    trained = Lora(r=2, seed=0, init=False)
    assert of(adapter=trained) != of()
    assert of(adapter=trained) != of(adapter=Lora(r=2, seed=1, init=False))


@pytest.mark.parametrize("options", [{"alpha": 8}, {"rslora": True}, {"options": {"alpha_pattern": {"q_proj": 1}}}])
def test_the_scale_of_an_adapter_that_adds_something(options):
    """Two adapters with the same matrices; one of them fresh, it adds nothing whatever its scale."""
    assert of(adapter=Lora(r=2, seed=0, init=False, **options)) != of(adapter=Lora(r=2, seed=0, init=False))
    assert of(adapter=Lora(r=2, **options)) == of()


def test_an_adapter_that_rewrites_its_base():
    digests = {of(adapter=Lora(r=2, seed=0, init=init)) for init in ("pissa", "olora", False, True)}
    assert len(digests) == 4
    assert of(adapter=Lora(r=2, init="pissa", dropout=0.3)) == of(adapter=Lora(r=2, init="pissa"))


def test_configuration_that_changes_the_numbers():
    assert of(TinyRandom(config={"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}})) != of()
    assert of(TinyRandom(config={"rms_norm_eps": 1e-3})) != of()


def test_definition_of_log_probs(monkeypatch):
    before = of()
    monkeypatch.setattr(fingerprint, "LOG_PROB_VERSION", fingerprint.LOG_PROB_VERSION + 1)
    assert of() != before


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_quantisation():
    digests = {of()}
    for quantize in ("nf4", "int8"):
        for seed in (0, 1):
            lora = Lora(r=2, quantize=quantize, seed=seed)
            model = lora.apply(SOURCE.load(lora.quantization()))
            before = reference_fingerprint(model)
            model.eval()(torch.tensor([[1, 70, 80]]))  # a forward pass may repack weights
            assert reference_fingerprint(model) == before
            digests.add(before)
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.base_layer.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("lm_head.original_module.weight", "lm_head.weight"),
        ("model.embed_tokens.token_adapter.base_layer.weight", "model.embed_tokens.weight"),
        ("model.layers.0._orig_mod.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.database_layer.weight", "model.database_layer.weight"),
    ],
)
def test_plain_names(name, expected):
    assert plain_name(name) == expected
