"""The groups of the data's own rows, for rounds that put their responses beside the policy's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.types import Example

if TYPE_CHECKING:
    from rlhf_lightning.data.module import AlignmentDataModule


class DataResponses(Mapping[str, Example]):
    """Each training row as a demonstration, by "file:row".

    Args:
        data: the rows as demonstrations; they are read when they are first needed.
    """

    def __init__(self, data: AlignmentDataModule) -> None:
        self.data = data

    @cached_property
    def _numbers(self) -> dict[str, int]:
        self.data.setup("fit")
        return {row: number for number, row in enumerate(self._examples.rows())}

    @property
    def _examples(self) -> Examples:
        assert self.data.train_examples is not None
        return self.data.train_examples

    def __getitem__(self, row: str) -> Example:
        return self._examples[self._numbers[row]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def check(self, prompts: Examples) -> None:
        """Refuse prompts whose rows have no response.

        Raises:
            ValueError: there are some; the message names the first.
        """
        missing = [row for row in prompts.rows() if row not in self._numbers]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(prompts)} prompts have no response of the data's own, which these rounds put "
                f"beside the policy's, first {missing[0]}: choose data with responses, or another selector"
            )
