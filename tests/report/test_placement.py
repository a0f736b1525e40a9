"""Labels never overlap, never leave the area, and the earlier ones choose first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.report.placement import Box, place_labels

AREA = Box(0, 0, 400, 300)


def test_a_single_label_is_on_the_right():
    (box,) = place_labels([(100, 100)], [(50, 12)], AREA, gap=6)
    assert box == Box(106, 94, 156, 106)


def test_a_label_at_the_right_edge_is_on_the_left():
    (box,) = place_labels([(390, 100)], [(50, 12)], AREA, gap=6)
    assert box == Box(334, 94, 384, 106)


def test_an_obstacle_is_avoided():
    (box,) = place_labels([(100, 100)], [(50, 12)], AREA, obstacles=[Box(110, 90, 120, 110)], gap=6)
    assert box == Box(44, 94, 94, 106)


def test_no_label_without_room():
    assert place_labels([(100, 100)], [(500, 12)], AREA) == [None]


def test_edges_may_touch():
    assert not Box(0, 0, 1, 1).overlaps(Box(1, 0, 2, 1))
    assert Box(0, 0, 1, 1).overlaps(Box(0.9, 0.9, 2, 2))


POINTS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 300)), min_size=1, max_size=40)


@given(POINTS, st.integers(10, 120))
def test_nothing_overlaps(points, width):
    """In any crowd, no two labels overlap, none covers a marker's centre, and none leaves the figure."""
    placed = place_labels(points, [(width, 12)] * len(points), AREA)
    boxes = [box for box in placed if box is not None]
    for i, box in enumerate(boxes):
        assert box.inside(AREA)
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.left < x < box.right and box.bottom < y < box.top for x, y in points)


@given(POINTS)
def test_there_is_always_room_for_the_first_label(points):
    """Markers alone cannot block every position of a small label in an area this large, unless it is crowded."""
    placed = place_labels(points[:5], [(30, 10)] * len(points[:5]), AREA)
    assert placed[0] is not None
