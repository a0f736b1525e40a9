"""Result of a selector: which responses of a round become which groups, with numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

#: A slot without a response.
NONE: Final = -1
#: A slot that holds the response of the data's own row.
DATA: Final = -2


@dataclass
class Selected:
    """Assignment of a round's responses to groups.

    Attributes:
        prompt: position of each group's prompt in the round, 0 .. prompts - 1, never decreasing; a prompt may have no
            group, one or many.
        slots: number of the prompt's sample in each slot, 0 .. samples - 1, ``NONE`` or ``DATA``, in the order of the
            kind's slots (of pairs: chosen, rejected). No response is in a group twice.
        numbers: float32 by name, (groups,) for a number a group (``margin``) or (groups, slots) for one a response
            (``desirable``, ``win_probability``); never nan.
        metrics: counts and shares to log, such as ``tie_rate``; never nan.

    Raises:
        ValueError: a selector broke one of these rules; the message says which.
    """

    prompt: Int[Tensor, " groups"]
    slots: Int[Tensor, "groups slots"]
    numbers: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_slots()
        for name, values in self.numbers.items():
            if values.shape not in (self.prompt.shape, self.slots.shape) or values.dtype != torch.float32:
                raise ValueError(
                    f"a selector gave {name!r} as {tuple(values.shape)} of {values.dtype}; it must be float32, one "
                    f"number a group {tuple(self.prompt.shape)} or one a slot {tuple(self.slots.shape)}"
                )
            if values.isnan().any():
                raise ValueError(f"a selector gave nan for {name!r}: it must leave out what has no number")
        if wrong := [name for name, value in self.metrics.items() if not math.isfinite(value)]:
            raise ValueError(f"a selector counted {wrong}, which must be finite")

    def _check_slots(self) -> None:
        if self.prompt.ndim != 1 or self.slots.ndim != 2 or len(self.prompt) != len(self.slots):
            raise ValueError(
                f"a selector gave prompts {tuple(self.prompt.shape)} and slots {tuple(self.slots.shape)}; they must be "
                "(groups,) and (groups, slots)"
            )
        if len(self) and (self.prompt[0] < 0 or (self.prompt.diff() < 0).any()):
            raise ValueError("a selector must give its groups in the order of their prompts, from 0")
        if (self.slots < DATA).any():
            raise ValueError(f"a selector gave the sample {int(self.slots.min())}: samples are numbered from 0")
        filled = self.slots.sort(dim=1).values
        if ((filled[:, 1:] == filled[:, :-1]) & (filled[:, 1:] != NONE)).any():
            raise ValueError("a selector put one response into two slots of a group")
        if (self.slots == NONE).all(dim=1).any():
            raise ValueError("a selector gave a group without a response")

    def __len__(self) -> int:
        return len(self.prompt)

    def check(self, prompts: int, samples: int) -> None:
        """Check the numbers of prompts and samples.

        Args:
            prompts: of the round.
            samples: of every prompt.

        Raises:
            ValueError: a group is of a prompt or a sample that the round does not have.
        """
        for what, values, count in (("prompt", self.prompt, prompts), ("sample", self.slots, samples)):
            if values.numel() and int(values.max()) >= count:
                raise ValueError(f"a selector gave the {what} {int(values.max())} of a round with {count}, from 0")
