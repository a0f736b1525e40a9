"""Rewards for lengths: of a target, within a group, and for ending before the limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rlhf_lightning.options import NonNegative, WholeNumber
from rlhf_lightning.rewards.base import ColumnReward, Scores, checked, reads_columns
from rlhf_lightning.rewards.calling import missing_column
from rlhf_lightning.rewards.function import as_reward
from rlhf_lightning.types import SampleGroup


class LengthReward:
    """Minus the distance of a response's length to a target, or the length itself.

    Source of a target for each row: "L1", arXiv:2503.04697, whose exact objective takes ``per_token`` 0.0003 and states
    the target in the prompt.

    Args:
        tokenizer: not used; every reward is given the policy's.
        target: tokens; None rewards length without end.
        column: of the data, with each row's target in tokens instead; a row where it is null has no score.
        per_token: reward of a token; negative without a target: a penalty of length.
        name: what its numbers are logged under.

    Raises:
        ValueError: both ``target`` and ``column``.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        target: WholeNumber | None = None,
        column: str | None = None,
        per_token: float = 0.01,
        name: str = "length",
    ) -> None:
        if target is not None and column is not None:
            raise ValueError(f"reward.target={target} and reward.column={column}: a target comes from one of them")
        self.target, self.column, self.per_token, self.name = target, column, per_token, name

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        return [self._group(group) for group in groups]

    @property
    def reads_columns(self) -> bool:
        """True if targets come from the data."""
        return self.column is not None

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise ValueError where the data lacks the column of targets."""
        if self.column is not None and self.column not in columns:
            raise missing_column(self.name, self.column, columns)

    def _group(self, group: SampleGroup) -> list[float | None]:
        target: float | None = self.target
        if self.column is not None:
            self.check_columns(list(group.columns))
            if group.columns[self.column] is None:
                return [None] * len(group.samples)
            target = float(group.columns[self.column])
        lengths = [len(response) for response in group.responses]
        return [self.per_token * (length if target is None else -abs(length - target)) for length in lengths]


class RelativeLength:
    r"""Shorter than the others of its group: 1/2 for the shortest response, -1/2 for the longest.

    .. math:: \lambda_i = \frac12 - \frac{|y_i| - \min_j |y_j|}{\max_j |y_j| - \min_j |y_j|}

    Responses that are not right get :math:`\min(0, \lambda_i)`, so that a short wrong answer gains nothing. 0 where all
    lengths are equal.

    Source: the length reward of "Kimi k1.5", arXiv:2501.12599.

    Args:
        tokenizer: the policy's, for ``right``.
        right: reward, partial of one, or function that is above 0 for right responses; None: all are right.
        name: what its numbers are logged under.
    """

    def __init__(self, tokenizer: Any = None, *, right: Any = None, name: str = "relative_length") -> None:
        self.name, self.right = name, None if right is None else as_reward(right, tokenizer)

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`; None where ``right`` gives None."""
        right: Scores = [[1.0] * len(group.samples) for group in groups]
        if self.right is not None:
            right = checked(self.right.name, self.right(groups), groups)
        return [self._group(group, judged) for group, judged in zip(groups, right, strict=True)]

    @property
    def reads_columns(self) -> bool:
        """True if ``right`` does."""
        return reads_columns(self.right)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Let ``right`` check that the columns that it reads are there."""
        if isinstance(self.right, ColumnReward):
            self.right.check_columns(columns)

    def _group(self, group: SampleGroup, right: Sequence[float | None]) -> list[float | None]:
        lengths = [len(response) for response in group.responses]
        if not lengths or min(lengths) == max(lengths):
            return [None if judged is None else 0.0 for judged in right]
        span = max(lengths) - min(lengths)
        bonus = [0.5 - (length - min(lengths)) / span for length in lengths]
        return [
            None if judged is None else value if judged > 0 else min(0.0, value)
            for value, judged in zip(bonus, right, strict=True)
        ]


class OverlongPenalty:
    r"""Soft overlong punishment: 0 up to ``max_length - buffer`` tokens, then down to ``-factor`` at ``max_length``.

    .. math:: -f \cdot \frac{|y| - (L_{max} - L_{buf})}{L_{buf}} \quad\text{between the two}

    Source: "DAPO", arXiv:2503.14476, equation 13, whose values are L_max = 20480 and L_buf = 4096.
    Differences: past L_max the paper gives -1 (``beyond=clip``, the default); verl's code continues down the same line
    (``beyond=linear``).

    Args:
        tokenizer: not used; every reward is given the policy's.
        max_length: tokens at which the penalty is whole, the response's EOS among them; ``rollout.max_new_tokens``.
        buffer: tokens before it at which the penalty begins.
        factor: the whole penalty.
        beyond: ``clip`` or ``linear``: past ``max_length``.
        name: what its numbers are logged under.

    Raises:
        ValueError: a buffer that is not within ``max_length``, or an unknown ``beyond``.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        max_length: int = 20_480,
        buffer: int = 4096,
        factor: NonNegative = 1.0,
        beyond: Literal["clip", "linear"] = "clip",
        name: str = "overlong",
    ) -> None:
        if not 0 < buffer <= max_length:
            raise ValueError(f"reward.buffer={buffer} must be positive and at most reward.max_length={max_length}")
        if beyond not in ("clip", "linear"):
            raise ValueError(f"reward.beyond={beyond!r} is neither clip nor linear")
        self.start, self.buffer, self.factor, self.beyond, self.name = max_length - buffer, buffer, factor, beyond, name

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        return [[self.penalty(len(response)) for response in group.responses] for group in groups]

    def penalty(self, length: int) -> float:
        """The penalty, at most 0, of a response of so many tokens."""
        share = max((length - self.start) / self.buffer, 0.0)
        if self.beyond == "clip":
            share = min(share, 1.0)
        return -self.factor * share if share else 0.0
