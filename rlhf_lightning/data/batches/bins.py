"""Filling of token-budget micro-batches: as full as possible, equally many in every epoch, and different each time.

The lengths alone determine the number of bins (:func:`target`), because a loader's length, a learning-rate schedule and
a resumed position must not depend on the epoch. Randomness comes from noise on the order in which groups are placed,
and is reduced when a draw needs more bins than that.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

#: Additional bins allowed for variety between epochs, as a share of those of the best filling.
SLACK = 0.01
#: With fewer bins than this, one more would cost too much, so the filling is the same in every epoch.
FEW = 16
#: Noise on the placing order, as a share of a group's length, from the most to the least random.
NOISE = (0.5, 0.25, 0.1, 0.0)


def target(lengths: IntArray, capacity: int, parts: int, *, padded: bool) -> int:
    """Bins of every epoch: the number without randomness, plus slack, rounded up to a multiple of ``parts``.

    That may exceed the number of groups, by less than ``parts``: then the last bins are empty.

    Args:
        lengths: tokens of each group.
        capacity: tokens of a bin.
        parts: micro-batches of a step.
        padded: bins are rectangles, groups times the longest one.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    if padded:
        fewest = len(next_fit(longest_first, lengths, capacity))
    else:
        _, fewest = best_fit(longest_first, lengths, capacity)
    slack = math.ceil(fewest * SLACK) if fewest >= FEW else 0
    return math.ceil(min(fewest + slack, len(lengths)) / parts) * parts


def fill(
    lengths: IntArray, capacity: int, most: int, *, padded: bool, window: int, rng: np.random.Generator | None
) -> list[IntArray]:
    """Bins of at most ``capacity`` tokens, at most ``most`` of them.

    Args:
        lengths: tokens of each group.
        capacity: tokens of a bin.
        most: from :func:`target`.
        padded: fill rectangles with groups of similar length, drawn from random windows; else any mix of lengths.
        window: groups of a window.
        rng: of the random order; None: the same bins in every epoch.
    """
    if padded:
        while rng is not None and window < len(lengths):
            shuffled = rng.permutation(len(lengths))
            windows = [shuffled[i : i + window] for i in range(0, len(lengths), window)]
            made = [b for w in windows for b in next_fit(w[np.argsort(-lengths[w], kind="stable")], lengths, capacity)]
            if len(made) <= most:
                return made
            window *= 2
        return next_fit(np.argsort(-lengths, kind="stable"), lengths, capacity)
    for noise in NOISE if rng is not None else NOISE[-1:]:
        shrunk = noise * rng.random(len(lengths)) if rng is not None else 0.0
        order = np.argsort(-lengths * (1 - shrunk), kind="stable")
        bin_of, count = best_fit(order, lengths, capacity)
        if count <= most:
            break
    by_bin = order[np.argsort(bin_of, kind="stable")]
    return np.split(by_bin, np.cumsum(np.bincount(bin_of, minlength=count))[:-1])


def best_fit(order: IntArray, lengths: IntArray, capacity: int) -> tuple[IntArray, int]:
    """Put each group, in order, into the bin that it fills best; open a new bin where it fits none.

    Returns:
        The bin of each group, in ``order``'s order, and the number of bins.
    """
    bins_with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set when some bin has room for exactly r tokens
    bin_of = []
    count = 0
    for length in lengths[order].tolist():
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            bins = bins_with_room[room]
            chosen = bins.pop()
            if not bins:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, count
            count += 1
        bin_of.append(chosen)
        left = room - length
        if left:
            bins = bins_with_room[left]
            if not bins:
                rooms |= 1 << left
            bins.append(chosen)
    return np.array(bin_of, dtype=np.int64), count


def next_fit(order: IntArray, lengths: IntArray, capacity: int, *, padded: bool = True) -> list[IntArray]:
    """Cut ``order`` into consecutive bins; a group longer than ``capacity`` gets its own bin.

    Args:
        order: groups, longest first.
        lengths: tokens of every group.
        capacity: tokens of a bin.
        padded: a bin takes its number of groups times the first, longest length; else the sum of its lengths.
    """
    bins = []
    start = 0
    ordered = lengths[order]
    ends = np.cumsum(ordered)
    while start < len(ordered):
        if padded:
            end = start + capacity // int(ordered[start])
        else:
            end = int(np.searchsorted(ends, ends[start] - ordered[start] + capacity, side="right"))
        end = min(max(end, start + 1), len(ordered))
        bins.append(order[start:end])
        start = end
    return bins


def resize(bins: list[IntArray], lengths: IntArray, count: int) -> list[IntArray]:
    """Split the bins with the most groups until there are exactly ``count``; there must not be more than that."""
    heap = [(-len(groups), number) for number, groups in enumerate(bins)]
    heapq.heapify(heap)
    bins = list(bins)
    while len(bins) < count:
        _, number = heapq.heappop(heap)
        groups = bins[number][np.argsort(-lengths[bins[number]], kind="stable")]
        bins[number] = groups[::2]
        bins.append(groups[1::2])
        heapq.heappush(heap, (-len(bins[number]), number))
        heapq.heappush(heap, (-len(bins[-1]), len(bins) - 1))
    return bins
