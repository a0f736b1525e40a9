"""Placement of labels next to points so that they cover neither each other nor a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Check if two rectangles share more than an edge."""
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top

    def inside(self, other: Box) -> bool:
        """Check if this rectangle lies within another."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )


#: Directions to try, in quarter turns from the right: sides first, then above and below, then diagonals.
_TURNS = (0.0, 2.0, 1.0, 3.0, 0.5, 3.5, 1.5, 2.5, 0.25, 3.75, 1.75, 2.25)


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    area: Box,
    *,
    obstacles: Sequence[Box] = (),
    gap: float = 5.0,
    reach: float = 90.0,
) -> list[Box | None]:
    """Place each label; earlier labels choose first.

    Args:
        points: the labelled points, in pixels.
        sizes: width and height of each label, in pixels.
        area: rectangle that no label may leave.
        obstacles: other rectangles that no label may cover, such as markers or a legend.
        gap: distance between a marker's centre and its label, in pixels.
        reach: maximum distance of a label from its point, in pixels.

    Returns:
        The rectangle of each label; None if there is no room for it.
    """
    markers = [Box(x - gap * 0.7, y - gap * 0.7, x + gap * 0.7, y + gap * 0.7) for x, y in points]
    occupied: list[Box] = [*obstacles, *markers]
    placed: list[Box | None] = []
    for point, size in zip(points, sizes, strict=True):
        candidates = (box for box in _candidates(point, size, gap, reach) if box.inside(area))
        free = next((box for box in candidates if not any(box.overlaps(other) for other in occupied)), None)
        placed.append(free)
        if free is not None:
            occupied.append(free)
    return placed


def _candidates(point: tuple[float, float], size: tuple[float, float], gap: float, reach: float) -> Iterator[Box]:
    """Candidate rectangles around a point, nearest first."""
    (x, y), (width, height) = point, size
    distance = gap
    while distance <= reach:
        for turn in _TURNS:
            across, up = math.cos(turn * math.pi / 2), math.sin(turn * math.pi / 2)
            # Half the rectangle's extent is added in that direction, so that the gap is measured from its edge.
            centre_x = x + across * distance + _sign(across) * width / 2
            centre_y = y + up * distance + _sign(up) * height / 2
            yield Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
        distance += max(4.0, height / 2)


def _sign(value: float) -> float:
    return 0.0 if abs(value) < 1e-9 else math.copysign(1.0, value)
