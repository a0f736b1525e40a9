"""Plain Python functions as rewards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.calling import TextFunction
from rlhf_lightning.rewards.text_reward import TextReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class FunctionReward(TextReward):
    """A function ``f(prompt, response, **columns) -> float | None`` of texts.

    ``columns`` are those of the prompt's row in the data. A function without ``**columns`` gets the columns that it
    names: ``def exact(prompt, response, answer): return float(response == answer)``. A column that is itself called
    ``prompt`` or ``response`` is not passed on.

    From the command line: ``reward=function reward.target=my_rewards.exact 'allow_targets=[my_rewards]'``; options of
    the function are ``reward.function.<option>=...``.

    Args:
        tokenizer: of whoever made the token ids.
        function: what to call.
        target: its dotted name where a yaml names it; nothing else reads it.
        name: what its numbers are logged under; None: the function's own name.
        on_error: an exception of the function is raised (``raise``), or the response has no score (``none``) and
            ``errors`` counts it.

    Raises:
        ValueError: an unknown ``on_error``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        function: Callable[..., float | None],
        target: str | None = None,
        name: str | None = None,
        on_error: Literal["raise", "none"] = "raise",
    ) -> None:
        if on_error not in ("raise", "none"):
            raise ValueError(f"reward.on_error={on_error!r} is neither raise nor none")
        self.function, self.on_error, self.target = TextFunction(function), on_error, target
        super().__init__(tokenizer, name or self.function.name)
        self.required = self.function.required

    @property
    def reads_columns(self) -> bool:
        """True if the function takes any column."""
        return self.function.reads_columns

    def score(self, prompt: str, response: str, columns: Mapping[str, Any]) -> float | None:
        """Call the function.

        Raises:
            ValueError: the function needs a column that the data does not have, raises, or returns what is no number.
        """
        for name in self.required:
            self.column(columns, name)
        try:
            value = self.function(prompt, response, columns)
        except Exception as error:
            if self.on_error == "raise":
                raise ValueError(
                    f"reward {self.name!r} raised {type(error).__name__}: {error}, for the response {response[:80]!r}: "
                    "correct the function, or set reward.on_error=none, which counts such responses and scores none"
                ) from error
            self.count(errors=1)
            return None
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"reward {self.name!r} returned {value!r} for the response {response[:80]!r}: it must return a number, "
                "or None if it cannot judge"
            ) from error


def as_reward(thing: Any, tokenizer: PreTrainedTokenizerBase | None = None, name: str | None = None) -> Reward:
    """A reward out of a reward, a reward's partial as a yaml gives it, or a plain function of texts.

    Args:
        thing: what should score.
        tokenizer: the policy's, for what is still to be made.
        name: what a function's numbers are logged under; None: its own name.

    Raises:
        TypeError: none of these.
    """
    maker = thing.func if isinstance(thing, functools.partial) else None
    if isinstance(maker, type):
        made: Reward = thing(tokenizer=tokenizer)
        return made
    if not isinstance(thing, type) and isinstance(thing, Reward):
        return thing
    if callable(thing) and not isinstance(thing, type):
        return FunctionReward(tokenizer, function=thing, name=name)
    raise TypeError(f"{thing!r} is neither a reward nor a function f(prompt, response, **columns)")
