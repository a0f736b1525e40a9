"""Options of requests to servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lightning.options import Count, NonNegative, Options, Positive, WholeNumber


@dataclass(frozen=True)
class RequestOptions(Options):
    """Time limits, retries and concurrency of requests to a server.

    Attributes:
        timeout: seconds that one attempt may take.
        retries: further attempts after the first, where the server is busy, fails or cannot be reached.
        backoff: seconds before the first of them; doubled for each further one.
        concurrency: requests under way at once; a rollout's each ask for all samples of one prompt.

    Raises:
        ValueError: an option is out of its range.
    """

    node: ClassVar[str] = "requests"

    timeout: Positive = 120.0
    retries: WholeNumber = 4
    backoff: NonNegative = 1.0
    concurrency: Count = 8
