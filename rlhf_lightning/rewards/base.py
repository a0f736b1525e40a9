"""The one interface of everything that scores responses."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Reward(Protocol):
    """Numbers for responses, higher is better.

    A reward is called with whole groups: every response to a prompt at once, so that a reward may compare them. It gets
    token ids as the policy makes them (prompts with their chat markup, responses with their EOS) and was given the
    policy's tokenizer when it was made: a yaml of the config group ``reward`` is a partial that is completed with
    ``tokenizer``. It moves itself to a device, has no gradients, draws no random numbers, and gives the same number
    however groups are batched.

    A reward that needs only text decodes with the tokenizer; one that needs columns of the data (references, tests)
    has no place here.
    """

    name: str  #: what its numbers are logged under

    def __call__(self, prompts: list[list[int]], responses: list[list[list[int]]]) -> list[list[float]]:
        """One number for each response.

        Args:
            prompts: token ids of each prompt.
            responses: for each prompt its responses as token ids; groups may differ in size.

        Returns:
            One list a prompt, one number a response, in the same order.
        """
        ...
