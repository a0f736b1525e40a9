"""Small tokenizers of every style that causes trouble, made on the spot.

All of them are byte-level (or character-level) with ids that can be read: the id of an ASCII character is its code
(``ord("a") == 97``), special tokens start at 256 and merged pairs at 300. ``HI`` is the merge of "h" and "i",
``DOT_NL`` the merge of "." and a line break, which joins across many a boundary.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

BOS, EOS, END, PAD = 256, 257, 258, 259
HI, DOT_NL, SPACE_H, NEW_YES = 300, 301, 302, 303

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: A BOS of its own, "[q]" around a user turn, the response after a space, EOS after each response; a generation prompt
#: has nothing to add.
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[' + m['content'] + ']' }}"
    "{% elif m['role'] == 'system' %}{{ raise_exception('no system turn') }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nS<|im_end|>\n' }}{% endif %}" + CHATML
#: Trims every turn, shows a think part of the last turn only, and opens a think part in no generation prompt.
THINKING = (
    "{% for m in messages %}{% set text = m['content'] | trim %}"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in text %}"
    "{% set text = text.split('</think>')[1] | trim %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Has no generation prompt although a response has a header.
NO_GENERATION_PROMPT = CHATML.split("{% if add_generation_prompt %}", maxsplit=1)[0]


def _byte_level(specials: dict[str, int]) -> Tokenizer:
    """Byte-level BPE whose byte ids are the bytes, with three merges."""
    byte_characters = _byte_alphabet()
    vocab = {character: byte for byte, character in byte_characters.items()}
    newline, space = byte_characters[10], byte_characters[32]
    vocab |= {"hi": HI, "." + newline: DOT_NL, space + "h": SPACE_H, newline + "y": NEW_YES, **specials}
    merges = [("h", "i"), (".", newline), (space, "h"), (newline, "y")]
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    # no splitting at spaces or line breaks: merges across a boundary must be possible
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return tokenizer


def _byte_alphabet() -> dict[int, str]:
    """Byte -> the character that stands for it in byte-level BPE (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _fast(tokenizer: Tokenizer, template: str | None = None, **specials: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **specials)
    made.chat_template = template
    return made


def llama_like(template: str | None = LLAMA2) -> PreTrainedTokenizerFast:
    """Adds a BOS to plain text; its template renders one too."""
    tokenizer = _byte_level({"<s>": BOS, "</s>": EOS})
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return _fast(tokenizer, template, bos_token="<s>", eos_token="</s>")


def qwen_like(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """No BOS at all, ChatML, the end-of-turn token is the EOS, a line break follows it."""
    tokenizer = _byte_level({"<|im_start|>": BOS, "<|im_end|>": END, "<|endoftext|>": EOS})
    return _fast(tokenizer, template, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def gpt2_like() -> PreTrainedTokenizerFast:
    """One token is BOS, EOS and padding; no template; nothing is added to plain text."""
    tokenizer = _byte_level({"<|endoftext|>": EOS})
    end = "<|endoftext|>"
    return _fast(tokenizer, None, bos_token=end, eos_token=end, pad_token=end)


def sentencepiece_like(template: str | None = None) -> PreTrainedTokenizerFast:
    """Puts a space before every text it is given, so a response tokenised alone starts with one that is not there."""
    vocab = {"▁": 32, "<unk>": 0, "<0x0A>": 10, "▁h": SPACE_H, "hi": HI, "<s>": BOS, "</s>": EOS}
    vocab |= {chr(code): code for code in range(33, 127)}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[("▁", "h"), ("h", "i")], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return _fast(tokenizer, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def default_system() -> PreTrainedTokenizerFast:
    """Its template adds a system turn where there is none; BOS marks every turn, as in SmolLM2."""
    tokenizer = _byte_level({"<|im_start|>": BOS, "<|im_end|>": END, "<|endoftext|>": EOS})
    return _fast(tokenizer, DEFAULT_SYSTEM, bos_token="<|im_start|>", eos_token="<|im_end|>")


def thinking() -> PreTrainedTokenizerFast:
    """Its template trims turns and hides the think part of earlier ones."""
    return qwen_like(THINKING)


def headless() -> PreTrainedTokenizerFast:
    """Its template has response headers but no generation prompt; EOS is not the end-of-turn token."""
    tokenizer = _byte_level({"<|im_start|>": BOS, "<|im_end|>": END, "<|endoftext|>": EOS})
    return _fast(tokenizer, NO_GENERATION_PROMPT, eos_token="<|endoftext|>")


STYLES = {
    "llama": llama_like,
    "qwen": qwen_like,
    "gpt2": gpt2_like,
    "sentencepiece": sentencepiece_like,
    "default_system": default_system,
    "thinking": thinking,
    "headless": headless,
}
