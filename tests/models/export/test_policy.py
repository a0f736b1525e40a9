"""Exports that plain transformers and PEFT load, in a process that has never seen this package."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.export.policy import export
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from tests.models.pairs import pairs

IDS = [[1, 70, 80, 90, 100]]
CHAT = [{"role": "user", "content": "hi"}]

#: Loads an export with transformers and PEFT alone, and writes down what it sees.
READER = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
folder, base, result = sys.argv[1:4]
ids, chat = json.loads(sys.argv[4]), json.loads(sys.argv[5])
model = AutoModelForCausalLM.from_pretrained(base or folder)
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = model.eval()(torch.tensor(ids)).logits
generation = GenerationConfig.from_pretrained(folder)
assert not any(name.startswith("rlhf_lightning") for name in sys.modules)
torch.save({
    "logits": logits,
    "text": tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
    "special": [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id],
    "ends": generation.eos_token_id,
    "pad": generation.pad_token_id,
}, result)
"""


def _read(folder, base="", tmp_path=None):
    result = tmp_path / "read.pt"
    command = [sys.executable, "-c", READER, str(folder), str(base), str(result), json.dumps(IDS), json.dumps(CHAT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(result)


def _trained(adapter: Lora | None = None, source: TinyRandom | None = None):
    """Models whose policy has been somewhere else."""
    models = ModelBuilder(source or TinyRandom(), adapter, "none")()
    policy = models.policy.train()
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.5)
    for seed in range(2):
        (-policy(pairs(seed)).mean().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return models


def _logits(policy: Actor) -> torch.Tensor:
    with torch.no_grad():
        return policy.eval().model(torch.tensor(IDS)).logits


@pytest.mark.parametrize(
    "tied", [pytest.param(False, id="untied", marks=pytest.mark.slow), pytest.param(True, id="tied")]
)
def test_full_weights(tmp_path, tied):
    models = _trained(source=TinyRandom(tie_embeddings=tied))
    export(models.policy, models.tokenizer, tmp_path / "out")
    read = _read(tmp_path / "out", tmp_path=tmp_path)
    assert torch.equal(read["logits"], _logits(models.policy))
    assert read["text"] == models.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert read["special"] == [0, 1, 3]
    assert (read["ends"], read["pad"]) == (3, 0)


def test_adapter(tmp_path):
    models = _trained(Lora(r=4, seed=0))
    TinyRandom().load().save_pretrained(tmp_path / "base")
    export(models.policy, models.tokenizer, tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "chat_template.jinja", "tokenizer.json"} <= written
    assert "model.safetensors" not in written
    read = _read(tmp_path / "out", tmp_path / "base", tmp_path=tmp_path)
    assert torch.equal(read["logits"], _logits(models.policy))
    assert (read["logits"] - TinyRandom().load()(torch.tensor(IDS)).logits).abs().max() > 0.1


def test_merged(tmp_path):
    models = _trained(Lora(r=4, seed=0))
    before = {name: value.clone() for name, value in models.policy.state_dict().items()}
    expected = _logits(models.policy)
    export(models.policy, models.tokenizer, tmp_path / "out", form="merged")
    read = _read(tmp_path / "out", tmp_path=tmp_path)
    torch.testing.assert_close(read["logits"], expected, rtol=1e-5, atol=1e-4)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert torch.equal(_logits(models.policy), expected)
    assert all(torch.equal(value, before[name]) for name, value in models.policy.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {"dora": True},
        {"modules_to_save": ["lm_head"]},
        {"options": {"trainable_token_indices": [70, 80]}},
        {"rslora": True, "target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["dora", "modules_to_save", "token_deltas", "embeddings"],
)
def test_merged_equals_what_is_merged(tmp_path, options):
    models = _trained(Lora(r=4, seed=0, **options))
    export(models.policy, models.tokenizer, tmp_path, form="merged")
    loaded = Pretrained(str(tmp_path)).load()
    torch.testing.assert_close(loaded(torch.tensor(IDS)).logits, _logits(models.policy), rtol=1e-4, atol=1e-3)


def test_merging_again_and_again_does_not_drift_in_bfloat16(tmp_path):
    models = ModelBuilder(TinyRandom(dtype="bfloat16"), Lora(r=4, seed=0, init=False), "none")()
    expected = _logits(models.policy)
    for _ in range(3):
        export(models.policy, models.tokenizer, tmp_path, form="merged")
    assert torch.equal(_logits(models.policy), expected)


def test_export_again_replaces(tmp_path):
    models = _trained()
    export(models.policy, models.tokenizer, tmp_path)
    with torch.no_grad():
        models.policy.base.lm_head.weight.zero_()
    export(models.policy, models.tokenizer, tmp_path)
    assert not Pretrained(str(tmp_path)).load().lm_head.weight.any()


def test_exports_load_as_sources(tmp_path):
    models = _trained()
    export(models.policy, models.tokenizer, tmp_path)
    again = ModelBuilder(Pretrained(str(tmp_path)), None, "none")()
    assert torch.equal(again.policy(pairs()).token, models.policy.eval()(pairs()).token)


def test_ddp_exports_the_same(tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        models = _trained(Lora(r=4, seed=0))
        DistributedDataParallel(models.policy)  # wraps the very module that is exported
        export(models.policy, models.tokenizer, tmp_path / "out")
    finally:
        torch.distributed.destroy_process_group()
    resumed = ModelBuilder(TinyRandom(), Lora(path=str(tmp_path / "out")), "none")()
    assert torch.equal(_logits(resumed.policy), _logits(models.policy))


def test_nothing_of_the_packed_backend_is_written(tmp_path):
    models = _trained()
    assert models.policy.backend == "packed"
    export(models.policy, models.tokenizer, tmp_path)
    assert "rlhf" not in (tmp_path / "config.json").read_text()


def test_impossible_forms(tmp_path):
    models = ModelBuilder(TinyRandom(), None, "none")()
    with pytest.raises(ValueError, match="no adapter to export"):
        export(models.policy, models.tokenizer, tmp_path, form="adapter")
    with pytest.raises(ValueError, match="auto, adapter or merged"):
        export(models.policy, models.tokenizer, tmp_path, form="gguf")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_quantised_bases_export_their_adapter_only(tmp_path):
    models = _trained(Lora(r=4, seed=0, quantize="nf4"))
    with pytest.raises(ValueError, match="merge_and_unload"):
        export(models.policy, models.tokenizer, tmp_path, form="merged")
    export(models.policy, models.tokenizer, tmp_path)
    lora = Lora(path=str(tmp_path), quantize="nf4")
    assert torch.equal(_logits(ModelBuilder(TinyRandom(), lora, "none")().policy), _logits(models.policy))
