"""Models behind a judge: a server, or the policy in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.data.tokens.templates import chat_text
from rlhf_lightning.ops.streams import stream_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Mapping[str, str]]


@runtime_checkable
class Ask(Protocol):
    """A model that replies to conversations, such as :class:`rlhf_lightning.rollout.ChatClient`."""

    def ask_each(
        self, conversations: Sequence[Conversation], *, max_tokens: int, temperature: float, seed: int
    ) -> Sequence[str | None]:
        """Get one reply per conversation, in order; None if there was none.

        Args:
            conversations: messages with ``role`` and ``content``.
            max_tokens: maximum tokens of a reply.
            temperature: 0 takes the most likely token.
            seed: of the draws.
        """
        ...


class AskPolicy:
    """The policy that is trained answers as it is at that moment; a collective call where its weights are sharded.

    Args:
        tokenizer: the policy's.
        policy: anything with ``sample(prompts, max_new_tokens=, temperature=, streams=) -> ids``, such as a method's
            module.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: Any) -> None:
        self.tokenizer, self.policy = tokenizer, policy

    def ask_each(
        self, conversations: Sequence[Conversation], *, max_tokens: int, temperature: float, seed: int
    ) -> list[str | None]:
        """See :class:`Ask`. A response depends on its question and the seed, not on what else this process asks."""
        prompts = [conversation_ids(self.tokenizer, conversation) for conversation in conversations]
        streams = [(stream_seed("judge", seed, *ids), 0) for ids in prompts]
        options = {"max_new_tokens": max_tokens, "temperature": temperature, "streams": streams}
        answers = self.policy.sample(prompts, **options)
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in answers]


def conversation_ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Tokens of a conversation up to the answer; its turns one after the other where there is no chat template."""
    messages: Turns = [dict(message) for message in conversation]
    if tokenizer.chat_template:
        text = chat_text(tokenizer, messages, generation=True)
    else:
        text = "\n\n".join(message["content"] for message in messages) + "\n"
    encoded: Any = tokenizer(text, add_special_tokens=not tokenizer.chat_template)
    return list(encoded["input_ids"])


def asker(judge: Any, tokenizer: Any, policy: Any, asking: str) -> Ask:
    """Choose the model to ask: the given judge, or else the policy.

    Args:
        judge: an :class:`Ask`, or None.
        tokenizer: the policy's.
        policy: None where no loop has set it.
        asking: the reward that asks, for the message.

    Raises:
        ValueError: there is nobody to ask.
    """
    if judge is not None:
        given_judge: Ask = judge
        return given_judge
    if policy is None or tokenizer is None:
        raise ValueError(
            f"{asking} needs a model to ask: give it a server (reward.judge: an OpenAI-compatible client), or use it "
            "as the reward of on-policy training, where the policy replies"
        )
    return AskPolicy(tokenizer, policy)
