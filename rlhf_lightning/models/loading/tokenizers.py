"""Tokenizers: what is put right after loading one, and the tokenizer that needs no download."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: Special tokens that models reserve and never produce, best first. Used for padding when a tokenizer pads with EOS.
SPARE_TOKENS = (
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<|reserved_special_token_0|>",
    "<unk>",
)

#: Chat templates by name, for models that come without one: ``chat_template: chatml``.
CHAT_TEMPLATES = {
    # OpenAI's chat markup; for tokenizers that hold <|im_start|> and <|im_end|>.
    "chatml": (
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
    # The Zephyr format (arXiv:2310.16944): plain-text role marks and the tokenizer's own EOS, so it fits any tokenizer.
    "zephyr": (
        "{%- for message in messages -%}"
        "{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
    ),
}


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, pad_token: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """Give a loaded tokenizer an end of sequence, a padding token that is not it, and the chosen chat template.

    Padding by the EOS token teaches downstream code that masks by token id to ignore the end of a response; nothing
    here masks by id, the exported tokenizer should not invite it either.

    Args:
        tokenizer: changed in place.
        pad_token: padding token; None takes the tokenizer's own, or a special token it reserves if that is EOS. A
            token that the tokenizer does not have is added to it.
        chat_template: a name in :data:`CHAT_TEMPLATES`, a path of a Jinja file, the template itself, or None to keep
            the tokenizer's own.

    Raises:
        ValueError: the tokenizer has no EOS token, or ``pad_token`` is its EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no EOS token, so no response could end")
    if chat_template is not None:
        tokenizer.chat_template = resolve_chat_template(chat_template)
    tokenizer.padding_side = "right"
    if pad_token is not None:
        if pad_token == tokenizer.eos_token:
            raise ValueError(f"model.pad_token={pad_token!r} is the EOS token; choose another or leave it null")
        tokenizer.add_special_tokens({"pad_token": pad_token})
    elif tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _spare_token(tokenizer)
    return tokenizer


def resolve_chat_template(template: str) -> str:
    """The template behind a name of :data:`CHAT_TEMPLATES`, a path, or the text of a template itself.

    Raises:
        ValueError: it is none of the three.
    """
    if template in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[template]
    if "{" in template:
        return template
    path = Path(template).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8")
    raise ValueError(
        f"model.chat_template={template!r} is not a file, not Jinja text and none of {', '.join(CHAT_TEMPLATES)}"
    )


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    vocabulary = tokenizer.get_vocab()
    candidates = [*SPARE_TOKENS, *([tokenizer.unk_token] if tokenizer.unk_token else [])]
    for token in candidates:
        if token in vocabulary and token not in taken:
            return str(token)
    # GPT-2 and its like reserve nothing. A new token would widen the softmax, that is, change every log-probability
    # of the model, so that is left to an explicit model.pad_token.
    log.info("%s has no spare token and pads with EOS; set model.pad_token to add one", tokenizer.name_or_path)
    return str(tokenizer.eos_token)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer made on the spot: one token a UTF-8 byte, four special tokens, chat markup.

    It encodes any text without loss in ``4 + 256`` ids: ``<pad>`` 0, ``<s>`` 1 (BOS, put in front of plain text),
    ``<|im_start|>`` 2, ``<|im_end|>`` 3 (EOS).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    maker: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerBase = maker(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = "{{- bos_token -}}" + CHAT_TEMPLATES["chatml"]
    return tokenizer
