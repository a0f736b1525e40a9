"""FSDP2 in two processes on the CPU: the same numbers, gradients, samples and exports as in one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rlhf_lightning.models.blocks import decoder_layers
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sharding import unsharded
from rlhf_lightning.models.sources import ARCHITECTURES, TinyRandom
from tests.helpers.two_processes import failure
from tests.models.sharded_job import CASES, PROMPTS


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    assert failure("tests.models.sharded_job", str(folder)) == ""
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one_and_export_what_they_trained(exports, name):
    # The comparisons of log-probs, gradients and samples are in the job; here is what it left on the disk.
    expected = torch.load(exports / name / "logits.pt")
    ids = torch.tensor(PROMPTS[2:3])
    if CASES[name][1] is None:
        model = AutoModelForCausalLM.from_pretrained(exports / name / "sharded")
    else:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(exports / name / "base")
        bare = base(ids).logits
        model = PeftModel.from_pretrained(base, exports / name / "sharded")
        merged = AutoModelForCausalLM.from_pretrained(exports / name / "merged")
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-3)
        assert (bare - expected).abs().max() > 0.1
    assert torch.equal(model.eval()(ids).logits, expected)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_decoder_layers_are_found_in_every_architecture(architecture):
    layers = decoder_layers(TinyRandom(architecture=architecture, layers=3).load())
    assert len(layers) == 3
    assert len({type(layer) for layer in layers}) == 1


def test_decoder_layers_are_found_beneath_an_adapter():
    from rlhf_lightning.models.adapters.lora import Lora

    policy = ModelBuilder(TinyRandom(), Lora(r=2, seed=0), "none")().policy
    assert [type(layer).__name__ for layer in decoder_layers(policy)] == ["LlamaDecoderLayer"] * 2


def test_unsharded_is_nothing_without_fsdp():
    module = nn.Linear(2, 2)
    weight = module.weight
    with unsharded(module):
        assert module.weight is weight
