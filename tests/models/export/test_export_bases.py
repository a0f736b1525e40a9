"""Bases that an adapter's export needs: bases out of GGUF files, resized vocabularies, adapters as models."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.folders import refuse_injected
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.export.policy import export, written_form
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer, prepare_tokenizer
from rlhf_lightning.models.loading.vocabulary import align_with_tokenizer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from tests.helpers.tiny_models import tiny_model, write_gguf
from tests.models.adapters.test_merging import IDS, TOKENIZER, adapted, folder_of, logits, moved

ROWS = len(TOKENIZER)


def text_of(folder: Path) -> str:
    """Everything in an export that is text."""
    return "".join(file.read_text() for file in folder.iterdir() if file.suffix in (".json", ".md"))


@pytest.fixture
def from_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights").mkdir()
    return write_gguf(tiny_model("llama"), tmp_path / "weights" / "tiny.gguf")


def test_an_adapter_of_a_gguf_model_is_exported_merged(from_gguf: Path, tmp_path: Path) -> None:
    """Its base is nowhere to be had by a name; twice, since the second load comes out of the cache."""
    for number in range(2):
        policy = moved(Lora(r=4, seed=0).apply(Pretrained(str(from_gguf)).load()))
        folder = export(policy, TOKENIZER, tmp_path / str(number))
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(policy.model))
        assert str(tmp_path) not in text_of(folder)


def test_an_adapter_of_a_gguf_model_that_is_asked_for_says_what_its_base_is(from_gguf: Path, tmp_path: Path) -> None:
    policy = moved(Lora(r=4, seed=0).apply(Pretrained(str(from_gguf)).load()))
    for _ in range(2):
        folder = export(policy, TOKENIZER, tmp_path / "out", form="adapter")
    assert str(tmp_path) not in text_of(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny.gguf"
    readme = (folder / "README.md").read_text()
    assert readme.count("AutoModelForCausalLM.from_pretrained('FOLDER', gguf_file='tiny.gguf')") == 1
    base = AutoModelForCausalLM.from_pretrained(from_gguf.parent, gguf_file="tiny.gguf")  # as the README says
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, folder)), logits(policy.model))


def test_a_gguf_file_in_a_package_is_named_by_its_label(from_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_lightning.models.gguf.files.file_in_package", lambda package, file: from_gguf)
    model = Pretrained("Tiny", gguf_file="tiny.gguf", package="llm-tiny").load()
    assert (model.name_or_path, model.config._name_or_path) == ("Tiny", "Tiny")
    assert "tiny.gguf of the Python package llm-tiny" in model.base_note  # type: ignore[operator]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_quantised_gguf_model_exports_its_adapter(from_gguf: Path) -> None:
    lora = Lora(r=4, quantize="nf4")
    policy = Actor(lora.apply(Pretrained(str(from_gguf)).load(lora.quantization(torch.float32))))
    assert written_form(policy, TOKENIZER, "auto") == "adapter"


def resized(folder: Path, lora: Lora, *more: str) -> tuple[Actor, Any]:
    """A tied model that got a padding token, and what else is named; and its tokenizer."""
    TinyRandom(tie_embeddings=True).load().save_pretrained(folder / "base")
    tokenizer = prepare_tokenizer(byte_tokenizer(), pad_token="<|pad|>")
    tokenizer.add_tokens(list(more))
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    align_with_tokenizer(model, tokenizer)
    assert model.get_input_embeddings().num_embeddings == ROWS + 1 + len(more)
    return moved(lora.apply(model)), tokenizer


def test_an_added_padding_token_is_no_part_of_the_adapter(tmp_path: Path) -> None:
    """PEFT would add the resized matrices, with which the base that everybody has does not load it."""
    policy, tokenizer = resized(tmp_path, Lora(r=4, seed=0))
    folder = export(policy, tokenizer, tmp_path / "out")
    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder)
    torch.testing.assert_close(logits(plain), logits(policy.model)[..., :ROWS])
    again = AutoModelForCausalLM.from_pretrained(export(policy, tokenizer, tmp_path / "merged", form="merged"))
    torch.testing.assert_close(logits(again), logits(policy.model), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("lora", "more"),
    [
        (Lora(r=4, modules_to_save=["embed_tokens", "lm_head"]), ()),
        (Lora(r=4, options={"trainable_token_indices": [ROWS]}), ()),
        (Lora(r=4), ("<|tool|>",)),
    ],
    ids=["trained", "token", "two"],
)
def test_added_tokens_that_are_read_are_exported_with_the_weights(lora: Lora, more: tuple[str], tmp_path: Path) -> None:
    policy, tokenizer = resized(tmp_path, lora, *more)
    folder = export(policy, tokenizer, tmp_path / "out")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(folder)), logits(policy.model), atol=1e-4, rtol=1e-5
    )
    adapter = export(policy, tokenizer, tmp_path / "adapter", form="adapter")
    rows = ROWS + 1 + len(more)
    assert f"resize_token_embeddings({rows})" in (adapter / "README.md").read_text()
    if not more:  # nothing frozen is missing
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        base.resize_token_embeddings(rows)
        torch.testing.assert_close(
            logits(PeftModel.from_pretrained(base, adapter))[..., :ROWS], logits(policy.model)[..., :ROWS]
        )


def test_another_form_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """transformers reads the adapter where it finds one."""
    policy = adapted(folder_of("llama", tmp_path), Lora(r=4, seed=0))
    for form in ("adapter", "merged", "adapter"):
        folder = export(policy, TOKENIZER, tmp_path / "out", form=form)  # type: ignore[arg-type]
        names = {file.name for file in folder.iterdir()}
        held = {"adapter_config.json", "adapter_model.safetensors", "README.md"}, {"config.json", "model.safetensors"}
        assert [each & names for each in held] == ([held[0], set()] if form == "adapter" else [set(), held[1]])
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(policy.model))


@pytest.mark.parametrize("options", [{}, {"target_modules": ["q_proj", "embed_tokens"]}], ids=["plain", "apart"])
def test_an_adapter_as_the_model_is_its_base_with_it(options: dict[str, Any], tmp_path: Path) -> None:
    policy = adapted(folder_of("llama", tmp_path), Lora(r=4, seed=0, **options))
    folder = export(policy, TOKENIZER, tmp_path / "out")
    model = Pretrained(str(folder)).load()
    torch.testing.assert_close(logits(model), logits(policy.model), atol=2e-5, rtol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())
    # An adapter that is trained on it now does not stand on the base that the first one names.
    second = moved(Lora(r=2, seed=1).apply(model))
    again = AutoModelForCausalLM.from_pretrained(export(second, TOKENIZER, tmp_path / "second"))
    torch.testing.assert_close(logits(again), logits(second.model), atol=2e-5, rtol=1e-5)


def test_an_adapter_whose_base_is_not_to_be_had(tmp_path: Path) -> None:
    policy = adapted(folder_of("llama", tmp_path), Lora(r=4, seed=0))
    folder = export(policy, TOKENIZER, tmp_path / "out")
    options = rf"give the base and the adapter, model\.name=BASE adapter=lora adapter\.path={folder}"
    with pytest.raises(ValueError, match=options):
        refuse_injected(AutoModelForCausalLM.from_pretrained(folder), str(folder))  # as one of the hub comes
    config = json.loads((folder / "adapter_config.json").read_text())
    for base in ("nowhere/at-all", None):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(ValueError, match=options):
            Pretrained(str(folder)).load()


def test_an_adapter_on_a_model_of_its_name_is_exported_alone(tmp_path: Path) -> None:
    TinyRandom().load().save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    models = ModelBuilder(Pretrained(str(tmp_path / "base")), Lora(r=2), "none")()
    assert written_form(models.policy, models.tokenizer, "auto") == "adapter"
    assert IDS.max() < ROWS
