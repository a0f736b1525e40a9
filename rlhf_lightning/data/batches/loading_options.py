"""Options of loading other than the size of a step: cut, order and packing of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lightning.options import Count, Options, WholeNumber

#: Steps of a bucketing window where batches are padded; what transformers' ``group_by_length`` uses.
PADDED_BUCKET = 50


@dataclass(frozen=True)
class LoadingOptions(Options):
    """Options that decide how rows are cut, ordered and packed.

    Attributes:
        eval_batch_size: groups of a process's evaluation batch; None: training's micro-batch, at most 16.
        shuffle: another order every epoch.
        bucket: window, in steps, out of which steps of similar length are made; None: 50 when padded, else 1.
        padded: count padding too, for ``model.backend=padded``; None: no, and the commands set it from the model.
        num_workers: processes that pack ahead; packing takes under a millisecond a batch, so 0 is usually right.

    Raises:
        ValueError: an option is out of its range.
    """

    node: ClassVar[str] = "data.loading"

    eval_batch_size: Count | None = None
    shuffle: bool = True
    bucket: Count | None = None
    padded: bool | None = None
    num_workers: WholeNumber = 0

    @property
    def window(self) -> int:
        """Steps of the bucketing window."""
        return self.bucket or (PADDED_BUCKET if self.padded else 1)
