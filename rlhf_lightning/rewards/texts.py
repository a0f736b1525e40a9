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

Prompts = list[list[int]]
Responses = list[list[list[int]]]
_SENTINEL = "\x01content\x01"
_EXCHANGE = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
#: Prompts by which templates are compared: an exported one differs where a conversation ends with a response.
_PROBES = ([*_EXCHANGE[:1]], [*_EXCHANGE, *_EXCHANGE[:1]], [{"role": "system", "content": "Be brief."}, *_EXCHANGE[:1]])


class Texts:
    """What a policy's tokens say, and how the scoring model says it.

    A prompt's content is taken out of the policy's chat template (a prompt of several turns keeps the text between its
    first and last mark) and put into the scoring model's own; responses are decoded without special tokens and closed
    with the scoring model's EOS.

    Args:
        own: tokenizer of the scoring model.
        theirs: tokenizer of whoever made the ids; None: the same.
    """

    def __init__(self, own: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase | None = None) -> None:
        self.own, self.theirs = own, theirs if theirs is not None else own
        #: Whether the ids must be made again.
        self.renders = not _equal(own, self.theirs)

    @property
    def eos(self) -> int:
        """The scoring model's end of sequence."""
        return cast("int", self.own.eos_token_id)

    @property
    def beginning(self) -> int:
        """What stands before a text that has nothing before it."""
        return cast("int", self.own.bos_token_id if self.own.bos_token_id is not None else self.own.eos_token_id)

    def translated(self, groups: Sequence[SampleGroup]) -> tuple[Prompts, Responses]:
        """Prompts and responses in the scoring model's own tokens and chat template; as they are where these agree."""
        prompts, responses = [group.prompt for group in groups], [group.responses for group in groups]
        if not self.renders:
            return prompts, responses
        rendered = [self.asked(self.content(prompt)) for prompt in prompts]
        return rendered, [[[*self.ids(self.text(ids)), self.eos] for ids in group] for group in responses]

    def asked(self, text: str) -> list[int]:
        """A user's turn and the beginning of the answer, in the scoring model's tokens."""
        return self.ids(_with_template(self.own, text))

    def content(self, prompt: list[int]) -> str:
        """What the user said, out of the chat template that the policy's prompts are written in."""
        template = _with_template(self.theirs, _SENTINEL)
        before, _, after = template.partition(_SENTINEL)
        text = str(self.theirs.decode(prompt, skip_special_tokens=False))
        bos = self.theirs.bos_token or ""
        before, text = before.removeprefix(bos), text.removeprefix(bos)
        if before and text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
        return self.text(prompt)

    def text(self, ids: list[int]) -> str:
        """What a response says."""
        return str(self.theirs.decode(ids, skip_special_tokens=True))

    def ids(self, text: str) -> list[int]:
        """A text in the scoring model's tokens."""
        return cast("list[int]", self.own(text, add_special_tokens=False)["input_ids"])

    def example(self, prompt: list[int], group: Sequence[list[int]], max_length: int | None = None) -> Example:
        """A group within ``max_length``, the prompt's beginning left out; an empty response is its end alone."""
        responses = [response or [self.eos] for response in group]
        if max_length is not None and responses:
            prompt = prompt[-max(max_length - max(map(len, responses)), 1) :]
        return Example(prompt or [self.beginning], responses)


def batches(groups: Sequence[Example], max_tokens: int) -> Iterator[list[int]]:
    """Positions of groups of similar length that fit together, without the groups that have no response.

    Args:
        groups: in any order.
        max_tokens: of a batch, prompts and responses; a longer group is a batch of its own.
    """
    sizes = [_size(group) for group in groups]
    rows: list[int] = []
    taken = 0
    for row in sorted((row for row, group in enumerate(groups) if group.responses), key=sizes.__getitem__):
        if rows and taken + sizes[row] > max_tokens:
            yield rows
            rows, taken = [], 0
        rows.append(row)
        taken += sizes[row]
    if rows:
        yield rows


def _size(group: Example) -> int:
    return len(group.prompt) + sum(map(len, group.more_prompts)) + sum(map(len, group.responses))


def chosen_device(name: str) -> torch.device:
    """A device by name; ``auto`` takes CUDA where there is some."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _equal(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers make the same ids of the same conversation."""
    if one is other:
        return True
    same = one.get_vocab() == other.get_vocab() and one.eos_token_id == other.eos_token_id
    return same and all(_prompt(one, turns) == _prompt(other, turns) for turns in _PROBES)


def _prompt(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str | None:
    """What a model is given before it responds; None without a template, or where it refuses such turns."""
    if not tokenizer.chat_template:
        return None
    try:
        return chat_text(tokenizer, turns, generation=True)
    except (TemplateError, ValueError):
        return None


def _with_template(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A user's turn and the beginning of the answer; plain text without a template."""
    if not tokenizer.chat_template:
        return (tokenizer.bos_token or "") + text
    turn = [{"role": "user", "content": text}]
    return chat_text(tokenizer, turn, generation=True)
