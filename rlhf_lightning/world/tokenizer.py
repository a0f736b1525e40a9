"""The tokenizer of the tiny world: one token per word, built from the grammar's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.world.grammar import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = frozenset({PAD, BOS, EOS, UNKNOWN})
#: Every token; a token's id is its position.
VOCABULARY = [PAD, BOS, EOS, UNKNOWN, *vocabulary()]
_IDS = {word: index for index, word in enumerate(VOCABULARY)}
#: The turns of a conversation follow one another; the assistant's end with EOS.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['content'] + (eos_token if message['role'] == 'assistant' else ' ') -}}"
    "{%- endfor -%}"
)


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer: four special tokens, then the words in alphabetical order. Words are parted by spaces.

    Returns:
        A tokenizer that puts no token in front, and a chat template that renders a question and its response as the
        same tokens that they are as plain text.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(dict(_IDS), unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    maker: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerBase = maker(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(text: str) -> list[int]:
    """Ids of the words of a text; the same as the tokenizer's, without importing it."""
    return [_IDS.get(word, _IDS[UNKNOWN]) for word in text.split()]


def words_of(ids: Sequence[int]) -> list[str]:
    """The words behind ids, up to the end of the sequence.

    Raises:
        ValueError: an id is of another vocabulary.
    """
    if (largest := max(ids, default=0)) >= len(VOCABULARY):
        raise ValueError(
            f"token {largest} is not one of the tiny world's {len(VOCABULARY)} words: its gold reward can judge only "
            "policies of model=tiny. Choose model=tiny, or callbacks.gold=null and another reward"
        )
    words = [VOCABULARY[index] for index in ids]
    return words[: words.index(EOS)] if EOS in words else words


def end() -> int:
    """Id of the end of a sequence."""
    return _IDS[EOS]
