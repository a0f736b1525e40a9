"""A tokenizer in the terms of GGUF files: tokens by id, merges, and a name for how a text is split before them.

The format has names of known splits in place of the splits themselves, so a tokenizer is read as what it is, and is
refused where it splits in a way that has no name here. Byte-level BPE alone is written, which nearly all models of the
architectures of :mod:`~rlhf_lightning.models.gguf.export` have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

OTHER_WAY = "export form=merged, and give that folder to llama.cpp's convert_hf_to_gguf.py"
#: Patterns that texts are split by, under the format's names: those in the tokenizer files of Llama 3 and Qwen 2.
PATTERNS: Mapping[str, str] = {
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
#: Under this name alone llama.cpp takes a word that is a token as it is, before any merge.
_WHOLE_WORDS = "llama-bpe"
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # gguf.TokenType


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE tokenizer in the format's terms.

    Attributes:
        tokens: by id.
        types: of each token, a ``gguf.TokenType``.
        merges: best first, both halves with a space between them.
        split: the format's name of how a text is split before its merges.
        bos: whether every text gets BOS in front.
        eos: whether every text gets EOS behind it.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    split: str
    bos: bool
    eos: bool


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """A tokenizer in the format's terms.

    Qwen's brings a text to Unicode's composed form (NFC) first, which llama.cpp leaves to its caller.

    Raises:
        ValueError: it is not a byte-level BPE with merges, or does with a text what the format has no name for.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"the tokenizer {type(tokenizer).__name__} has no fast form: {OTHER_WAY}")
    parts: dict[str, Any] = json.loads(backend.to_str())
    _check_kind(parts["model"], parts["decoder"] or {})
    if (normalizer := (parts["normalizer"] or {}).get("type")) not in (None, "NFC"):
        raise ValueError(f"the tokenizer changes texts first (normalizer {normalizer}): {OTHER_WAY}")
    added = {int(token["id"]): token for token in parts["added_tokens"]}
    for token in added.values():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise ValueError(f"the tokenizer's token {token['content']!r} depends on what is beside it: {OTHER_WAY}")
    by_id = {number: text for text, number in parts["model"]["vocab"].items()}
    by_id |= {number: token["content"] for number, token in added.items()}
    ids = range(max(by_id) + 1)
    tokens = [by_id.get(number, _unused(number)) for number in ids]
    types = [_type(added[number]) if number in added else _NORMAL if number in by_id else _UNUSED for number in ids]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in parts["model"]["merges"]]
    return Vocabulary(tokens, types, merges, _split(parts), *_ends(tokenizer))


def _type(added: Mapping[str, Any]) -> int:
    return _CONTROL if added["special"] else _USER_DEFINED


def _unused(number: int) -> str:
    return f"[PAD{number}]"


def _check_kind(model: Mapping[str, Any], decoder: Mapping[str, Any]) -> None:
    """Refuse what is no byte-level BPE with merges, by what it is."""
    if model["type"] != "BPE":
        raise ValueError(f"the tokenizer is of the kind {model['type']}, not a byte-level BPE: {OTHER_WAY}")
    if decoder.get("type") != "ByteLevel" or model.get("byte_fallback"):
        raise ValueError(f"the tokenizer is a BPE of characters (sentencepiece), not of bytes: {OTHER_WAY}")
    if any(model.get(part) for part in ("continuing_subword_prefix", "end_of_word_suffix", "dropout")):
        raise ValueError(f"the tokenizer is a BPE with marks at the ends of words, or with dropout: {OTHER_WAY}")
    if not model["merges"]:
        raise ValueError("the tokenizer is a byte-level BPE without merges, which no reader of GGUF files takes")


def _split(parts: Mapping[str, Any]) -> str:
    """The format's name of how a tokenizer splits a text before its merges.

    Raises:
        ValueError: it splits otherwise than those that are named here.
    """
    whole = parts["pre_tokenizer"] or {}
    *before, last = whole.get("pretokenizers", [whole])
    name = None
    if last.get("type") == "ByteLevel" and not last["add_prefix_space"]:
        if last["use_regex"]:
            digits = {"type": "Digits", "individual_digits": True}
            name = "gpt-2" if not before else "smollm" if before == [digits] else None
        elif len(before) == 1 and before[0]["type"] == "Split":
            pattern = before[0]["pattern"].get("Regex")
            name = next((key for key, value in PATTERNS.items() if value == pattern), None)
    if name is None or bool(parts["model"].get("ignore_merges")) != (name == _WHOLE_WORDS):
        raise ValueError(f"the tokenizer splits texts in a way that has no name here: {OTHER_WAY}")
    return name


def _ends(tokenizer: Any) -> tuple[bool, bool]:
    """Return whether a text gets BOS in front and EOS behind it; an error where it gets anything else."""
    bare, ids = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    bos = len(ids) > len(bare) and ids[0] == tokenizer.bos_token_id
    eos = len(ids) - bos > len(bare) and ids[-1] == tokenizer.eos_token_id
    if ids[bos : len(ids) - eos] != bare:
        raise ValueError(f"the tokenizer puts other tokens than BOS and EOS around a text: {OTHER_WAY}")
    return bos, eos


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Add a tokenizer to a file, with unused tokens for the rows of the embedding that it has no token for.

    Raises:
        ValueError: see :func:`vocabulary_of`.
    """
    vocabulary = vocabulary_of(tokenizer)
    spare = range(len(vocabulary.tokens), rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list([*vocabulary.tokens, *map(_unused, spare)])
    writer.add_token_types([*vocabulary.types, *(_UNUSED for _ in spare)])
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(vocabulary.bos)
    writer.add_add_eos_token(vocabulary.eos)
    writer.add_add_space_prefix(False)
    special: Any = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: tokenizer.eos_token_id,
        writer.add_unk_token_id: tokenizer.unk_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
    }
    for add, number in special.items():
        if number is not None:
            add(int(number))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
