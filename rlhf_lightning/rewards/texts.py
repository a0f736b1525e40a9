"""Prompts and responses out of one tokenizer's tokens into another's, and groups of them into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from jinja2 import TemplateError

from rlhf_lightning.data.tokens.templates import chat_text
from rlhf_lightning.types import Example, SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompts = list[Sequence[int]]
Responses = list[list[list[int]]]
_SENTINEL = "\x01content\x01"
_EXCHANGE = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
#: Prompts by which templates are compared: an exported one differs where a conversation ends with a response.
_PROBES = ([*_EXCHANGE[:1]], [*_EXCHANGE, *_EXCHANGE[:1]], [{"role": "system", "content": "Be brief."}, *_EXCHANGE[:1]])


class Texts:
    """Translation of a policy's tokens to those of the scoring model.

    A prompt's content is taken out of the policy's chat template (a prompt of several turns keeps the text between its
    first and last mark) and put into the scoring model's own; responses are decoded without special tokens and closed
    with the scoring model's EOS.

    Args:
        model_tokenizer: tokenizer of the scoring model.
        sampler_tokenizer: tokenizer of the token ids; None: the same.
    """

    def __init__(
        self, model_tokenizer: PreTrainedTokenizerBase, sampler_tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        self.model_tokenizer, self.sampler_tokenizer = (
            model_tokenizer,
            sampler_tokenizer if sampler_tokenizer is not None else model_tokenizer,
        )
        #: True if the ids must be translated.
        self.renders = not _equal(model_tokenizer, self.sampler_tokenizer)

    @property
    def eos(self) -> int:
        """The scoring model's end of sequence."""
        return cast("int", self.model_tokenizer.eos_token_id)

    @property
    def beginning(self) -> int:
        """Token before a text that has nothing before it."""
        return cast(
            "int",
            self.model_tokenizer.bos_token_id
            if self.model_tokenizer.bos_token_id is not None
            else self.model_tokenizer.eos_token_id,
        )

    def translated(self, groups: Sequence[SampleGroup]) -> tuple[Prompts, Responses]:
        """Prompts and responses in the scoring model's own tokens and chat template; as they are where these agree."""
        prompts, responses = [group.prompt for group in groups], [group.responses for group in groups]
        if not self.renders:
            return prompts, responses
        rendered: Prompts = [self.asked(self.content(prompt)) for prompt in prompts]
        return rendered, [[[*self.ids(self.text(ids)), self.eos] for ids in group] for group in responses]

    def asked(self, text: str) -> list[int]:
        """A user's turn and the beginning of the response, in the scoring model's tokens."""
        return self.ids(_with_template(self.model_tokenizer, text))

    def content(self, prompt: Sequence[int]) -> str:
        """The user's text, extracted from the chat template of the policy's prompts."""
        template = _with_template(self.sampler_tokenizer, _SENTINEL)
        before, _, after = template.partition(_SENTINEL)
        text = str(self.sampler_tokenizer.decode([*prompt], skip_special_tokens=False))
        bos = self.sampler_tokenizer.bos_token or ""
        before, text = before.removeprefix(bos), text.removeprefix(bos)
        if before and text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
        return self.text(prompt)

    def text(self, ids: Sequence[int]) -> str:
        """Text of a response."""
        return str(self.sampler_tokenizer.decode([*ids], skip_special_tokens=True))

    def ids(self, text: str) -> list[int]:
        """A text in the scoring model's tokens."""
        return cast("list[int]", self.model_tokenizer(text, add_special_tokens=False)["input_ids"])

    def example(self, prompt: Sequence[int], group: Sequence[list[int]], max_length: int | None = None) -> Example:
        """A group within ``max_length``, the prompt's beginning left out; an empty response is its end alone."""
        responses = [response or [self.eos] for response in group]
        if max_length is not None and responses:
            prompt = prompt[-max(max_length - max(map(len, responses)), 1) :]
        return Example([*prompt] or [self.beginning], responses)


def batches(groups: Sequence[Example], max_tokens: int) -> Iterator[list[int]]:
    """Positions of groups of similar length that fit together, without the groups that have no response.

    Args:
        groups: in any order.
        max_tokens: of a batch, prompts and responses; a longer group is a batch of its own.
    """
    sizes = [_size(group) for group in groups]
    rows: list[int] = []
    filled = 0
    for row in sorted((row for row, group in enumerate(groups) if group.responses), key=sizes.__getitem__):
        if rows and filled + sizes[row] > max_tokens:
            yield rows
            rows, filled = [], 0
        rows.append(row)
        filled += sizes[row]
    if rows:
        yield rows


def _size(group: Example) -> int:
    return len(group.prompt) + sum(map(len, group.more_prompts)) + sum(map(len, group.responses))


def chosen_device(name: str) -> torch.device:
    """A device by name; ``auto`` takes CUDA where there is some."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _equal(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Check whether two tokenizers make the same ids of the same conversation."""
    if one is other:
        return True
    same = one.get_vocab() == other.get_vocab() and one.eos_token_id == other.eos_token_id
    return same and all(_prompt(one, turns) == _prompt(other, turns) for turns in _PROBES)


def _prompt(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str | None:
    """Prompt of a model before its response; None without a template, or if it refuses such turns."""
    if not tokenizer.chat_template:
        return None
    try:
        return chat_text(tokenizer, turns, generation=True)
    except (TemplateError, ValueError):
        return None


def _with_template(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A user's turn and the beginning of the response; plain text without a template."""
    if not tokenizer.chat_template:
        return (tokenizer.bos_token or "") + text
    turn = [{"role": "user", "content": text}]
    return chat_text(tokenizer, turn, generation=True)
