"""A GGUF file read back by transformers is the model and the tokenizer that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from rlhf_lightning.models.gguf.export import check_config, write_gguf
from rlhf_lightning.models.gguf.tokenizer import PATTERNS, vocabulary_of
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer
from rlhf_lightning.models.sources import SmolLM2
from rlhf_lightning.world.tokenizer import tiny_tokenizer
from tests.helpers.tiny_models import tiny_model

TEXTS = (
    "the teacher's kind answer, in 1234 words",
    " two  spaces\n\nand a\ttab",
    "héllo wörld \u2603 \U0001f600",
    "<|end|>the end<|end|> <think>no</think>",
)
SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    **{
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        for name, pattern in PATTERNS.items()
    },
}


def bpe(split: str = "gpt-2", *, bos: bool = False) -> Any:
    """A byte-level BPE of 300 tokens, three of them added."""
    core = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    core.pre_tokenizer = SPLITS[split]
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=299, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["the teacher gives the kindest answer there is " * 3, *TEXTS[:2]] * 20, trainer)
    core.add_tokens([AddedToken("<think>", normalized=False)])
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", bos_token="<|start|>", eos_token="<|end|>",
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def saved(folder: Path, family: str, tokenizer: Any, **options: Any) -> Any:
    """A random model and a tokenizer in a folder; the model."""
    model = tiny_model(family, vocab_size=304, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def read(path: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file."""
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Logits of a row of ids."""
    return model(torch.arange(3, 40)[None] * 7 % model.config.vocab_size, use_cache=False).logits


FAMILIES = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"tie_word_embeddings": False, "head_dim": 12, "rope_theta": 5e4}),
    ("qwen2", {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}),
    ("qwen3", {"head_dim": 128, "tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_float32_is_the_model_to_the_bit(family, options, tmp_path):
    model = saved(tmp_path / "merged", family, bpe(), **options)
    write_gguf(tmp_path / "merged", tmp_path / "out/model.gguf", "float32", name="tiny")
    again, _ = read(tmp_path / "out/model.gguf")
    assert type(again) is type(model)
    assert again.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert torch.equal(logits(again), logits(model))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(("precision", "bound"), [("float16", 2**-11), ("bfloat16", 2**-8), ("q8_0", None)])
def test_each_weight_is_rounded_once(precision, bound, tmp_path):
    """By half a unit of the type; in blocks of 32 by half a 127th of the largest, which is kept in float16."""
    model = saved(tmp_path, "llama", bpe(), intermediate_size=48)
    write_gguf(tmp_path, tmp_path / "model.gguf", precision, name="tiny")
    again = read(tmp_path / "model.gguf")[0].state_dict()
    for name, value in model.state_dict().items():
        error = (again[name] - value).abs()
        if value.ndim == 1:
            assert torch.equal(again[name], value)
        elif bound is not None or value.shape[1] % 32:  # no whole blocks: float16
            assert bool((error <= value.abs() * (bound or 2**-11) + 2**-24).all()), name
        else:
            scale = value.reshape(len(value), -1, 32).abs().amax(2, keepdim=True) / 127
            assert bool((error.reshape(len(value), -1, 32) <= scale * (0.5 + 127 * 2**-11)).all()), name


@pytest.mark.parametrize(("split", "bos"), [("gpt-2", False), ("qwen2", True)])
def test_the_tokenizer_is_the_same(split, bos, tmp_path):
    tokenizer = bpe(split, bos=bos)
    saved(tmp_path, "llama", tokenizer)
    write_gguf(tmp_path, tmp_path / "out/model.gguf", "float32", name="tiny")
    _, again = read(tmp_path / "out/model.gguf")
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert again(text).input_ids == ids
        assert again.decode(ids) == tokenizer.decode(ids)
    assert again.convert_ids_to_tokens(list(range(len(tokenizer)))) == tokenizer.convert_ids_to_tokens(
        list(range(len(tokenizer)))
    )
    for token in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"):
        assert getattr(again, token) == getattr(tokenizer, token)


def test_splits_are_those_of_the_reader():
    assert PATTERNS["qwen2"] == GGUF_PRE_TOKENIZER_SPLITS["qwen2"]
    assert PATTERNS["llama-bpe"] == GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]
    assert vocabulary_of(bpe("llama-bpe")).split == "llama-bpe"


def changed(**parts: Any) -> Any:
    """A tokenizer whose core has other parts."""
    tokenizer = bpe()
    for name, value in parts.items():
        setattr(tokenizer.backend_tokenizer, name, value)
    return tokenizer


def spaced() -> Any:
    """A tokenizer with a token that takes the space in front of it."""
    tokenizer = bpe()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (tiny_tokenizer, "kind WordLevel, not a byte-level BPE"),
        (byte_tokenizer, "without merges"),
        (spaced, "'<mask>' depends on what is beside it"),
        (lambda: changed(decoder=decoders.Metaspace()), "sentencepiece"),
        (lambda: changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), "no name here"),
        (lambda: changed(pre_tokenizer=pre_tokenizers.Whitespace()), "no name here"),
        (
            lambda: changed(
                post_processor=processors.TemplateProcessing(single="$A <|pad|>", special_tokens=[("<|pad|>", 0)])
            ),
            "other tokens than BOS and EOS",
        ),
    ],
)
def test_other_tokenizers_are_refused_by_name(tokenizer, message):
    with pytest.raises(ValueError, match=message):
        vocabulary_of(tokenizer())


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("gpt2", {}, "architecture gpt2 is none of those written"),
        ("mistral", {}, "architecture mistral"),
        ("qwen2", {}, "layer_types="),
        ("llama_biased", {}, "attention_bias=true"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters="),
    ],
)
def test_other_models_are_refused_by_name(family, options, message):
    model = tiny_model(family, **options)
    model.config.architectures = [type(model).__name__]
    with pytest.raises(ValueError, match=message):
        check_config(model.config)


def test_a_classifier_is_refused():
    config = tiny_model("llama").config
    config.architectures = ["LlamaForSequenceClassification"]
    with pytest.raises(ValueError, match="no language model"):
        check_config(config)


@pytest.mark.slow
def test_smollm2_is_written_as_it_was_read(tmp_path):
    """Its file is written again: the same weights to the bit, and the same tokens."""
    source = SmolLM2()
    model, tokenizer = source.load(), source.tokenizer()
    model.config.architectures = ["LlamaForCausalLM"]
    model.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    write_gguf(tmp_path / "merged", tmp_path / "out/model.gguf", "float32", name="smollm2")
    again, other = read(tmp_path / "out/model.gguf")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert torch.equal(logits(again), logits(model))
    turns = [{"role": "user", "content": "What is 12 + 345?"}]
    for text in (*TEXTS, tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)):
        assert other(text).input_ids == tokenizer(text).input_ids
    write_gguf(tmp_path / "merged", tmp_path / "small.gguf", "q8_0", name="smollm2")
    small = logits(read(tmp_path / "small.gguf")[0])
    assert float((small.softmax(-1) - logits(model).softmax(-1)).abs().sum(-1).mean()) < 0.05
    assert (tmp_path / "small.gguf").stat().st_size < 0.3 * (tmp_path / "out/model.gguf").stat().st_size
