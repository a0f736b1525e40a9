"""Options of judges that belong together: what a rating is, and how a judge writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lightning.options import Count, NonNegative, Options, Real, Seed, Share, WholeNumber


@dataclass(frozen=True)
class WritingOptions(Options):
    """Options of how a judge writes its verdict.

    Attributes:
        max_tokens: of the judge's response.
        temperature: of the judge.
        seed: of its draws.

    Raises:
        ValueError: an option is out of its range.
    """

    node: ClassVar[str] = "reward.writing"

    max_tokens: Count = 512
    temperature: NonNegative = 0.0
    seed: Seed = 0


@dataclass(frozen=True)
class RatingOptions(Options):
    """Scale of a rating, and the number of ratings that make a score.

    Attributes:
        low: least rating.
        high: greatest rating.
        scaled: bring the range to [0, 1].
        judgments: of each response; its score is the mean of those that could be read. More than one needs a
            temperature.
        least_read: judgments that must be readable; with fewer a response has no score.
        histogram: count ratings.

    Raises:
        ValueError: an empty range, or more judgments asked to be readable than there are.
    """

    node: ClassVar[str] = "reward.rating"

    low: Real = 0.0
    high: Real = 10.0
    scaled: bool = True
    judgments: Count = 1
    least_read: Count = 1
    histogram: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ValueError(f"{self.node}.low={self.low:g} must be below {self.node}.high={self.high:g}")
        if self.least_read > self.judgments:
            raise ValueError(
                f"{self.node}.least_read={self.least_read} must lie between 1 and {self.node}.judgments="
                f"{self.judgments}"
            )


@dataclass(frozen=True)
class DigitOptions(Options):
    """Scale of a rating that the probabilities of digits give.

    Attributes:
        low: least digit.
        high: greatest digit, at most 9.
        scaled: bring the range to [0, 1].
        least_mass: probability that the digits must have together; less is no verdict. Our choice.

    Raises:
        ValueError: no range of digits.
    """

    node: ClassVar[str] = "reward.rating"

    low: WholeNumber = 0
    high: WholeNumber = 5
    scaled: bool = False
    least_mass: Share = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high <= 9:
            raise ValueError(f"{self.node}.low={self.low} and high={self.high} must be digits, low below high")
