"""Prompts with the responses of other prompts, from which KTO's reference point is estimated (arXiv:2402.01306 eq. 7).

The partner of a row is at a fixed offset in the whole data set, so the estimate does not depend on which rows share a
batch: micro-batches of one row, any order and any number of processes give the same pairs. The number of rows alone
determines the offset, not the training seed, so cached reference log-probs serve every seed. Where the partner has the
same prompt (such as the two halves of an unpaired pair), the next row with another prompt is used instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.tokens.examples import Examples

IntArray = NDArray[np.int64]

#: Of the draw of the offset; another one would miss every cached reference log-prob.
_SEED = 2402_01306


@dataclass(frozen=True)
class Mismatches:
    """The rows of a data set, each with the response of a row with another prompt.

    A response is cut where prompt and response together would be longer than the longest row of the data set, so the
    rows' length limits hold here too.
    """

    examples: Examples  #: one response a prompt
    partner: IntArray  #: (groups,) whose response each prompt gets

    @classmethod
    def draw(cls, examples: Examples, role: str = "training") -> Mismatches:
        """Choose the partners.

        Args:
            examples: the data set.
            role: ``training`` or ``validation``, for errors.

        Raises:
            DataError: all rows have the same prompt.
            ValueError: the examples have several responses a prompt.
        """
        if examples.slots != 1:
            raise ValueError(f"mismatched responses need one response a prompt, and the examples have {examples.slots}")
        prompts = prompt_numbers(examples)
        if (prompts == prompts[:1]).all():
            raise DataError(
                f"all {len(prompts)} rows of the {role} data have the same prompt, but this loss needs prompts with "
                "the responses of other prompts: add other prompts (data.validation: a larger share, or null), or "
                "choose a loss without the input kl, such as method=apo_zero_unpaired"
            )
        return cls(examples, partners(prompts))

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def _kept(self) -> IntArray:
        """Tokens that each partner's response keeps, (groups,)."""
        prompt, response = np.diff(self.examples.bounds, axis=1).T
        room = int(self.examples.lengths.max()) - prompt
        return np.asarray(np.minimum(response[self.partner], room), dtype=np.int64)

    @cached_property
    def lengths(self) -> IntArray:
        """Tokens of each prompt with its partner's response, (groups,)."""
        prompt: IntArray = np.diff(self.examples.bounds[:, :2], axis=1).ravel()
        return prompt + self._kept

    @property
    def padded_lengths(self) -> IntArray:
        """The same: there is one response a prompt."""
        return self.lengths

    @cached_property
    def slot_tokens(self) -> NDArray[np.int32]:
        """Scored tokens of each partner's response, (groups, 1)."""
        counts = self.examples.slot_tokens[self.partner].copy()
        start = self.examples.bounds[self.partner, 1]
        for group in np.flatnonzero(self._kept < np.diff(self.examples.bounds[self.partner, 1:], axis=1).ravel()):
            counts[group] = self.examples.loss_mask[start[group] : start[group] + self._kept[group]].sum()
        return counts

    def select(self, groups: IntArray) -> Examples:
        """Some rows with their partners' responses, in the order given: new columns, made in whole-array operations."""
        examples, partner, kept = self.examples, self.partner[groups], self._kept[groups]
        prompt_start, prompt_end = examples.bounds[groups, 0], examples.bounds[groups, 1]
        begin = np.stack([prompt_start, examples.bounds[partner, 1]], axis=1).ravel()
        size = np.stack([prompt_end - prompt_start, kept], axis=1).ravel()
        cuts = np.concatenate([[0], np.cumsum(size)])
        taken = np.arange(cuts[-1]) + np.repeat(begin - cuts[:-1], size)
        both = zip(examples.select(groups).rows(), examples.select(partner).rows(), strict=True)
        names = [f"{row} with the response of {other}" for row, other in both]
        return Examples(
            tokens=examples.tokens[taken],
            loss_mask=examples.loss_mask[taken],
            bounds=np.stack([cuts[:-1:2], cuts[1::2], cuts[2::2]], axis=1),
            slot_tokens=self.slot_tokens[groups],
            names=pa.array(names, pa.large_string()),
            margin=None,
            number=examples.number[groups],
        )


def prompt_numbers(examples: Examples) -> IntArray:
    """A number for each distinct prompt, (groups,): equal where the prompts are."""
    tokens = np.ascontiguousarray(examples.tokens)
    seen: dict[bytes, int] = {}
    cuts = examples.bounds[:, :2].tolist()
    return np.array([seen.setdefault(tokens[a:b].tobytes(), len(seen)) for a, b in cuts], dtype=np.int64)


def partners(prompts: IntArray) -> IntArray:
    """For each row the row whose response it gets: the one at a seeded offset, or the next one with another prompt.

    Args:
        prompts: a number for each distinct prompt, of which there are at least two, (rows,).
    """
    count = len(prompts)
    changes = np.flatnonzero(prompts != np.roll(prompts, -1))  # rows followed (cyclically) by another prompt
    offset = int(np.random.default_rng([_SEED, count]).integers(1, count))
    partner = (np.arange(count) + offset) % count
    following = (changes[np.searchsorted(changes, partner) % len(changes)] + 1) % count
    return np.where(prompts[partner] == prompts, following, partner)
