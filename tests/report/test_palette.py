"""Colours that colour-blind people can distinguish, and their assignment to groups."""

from __future__ import annotations

import itertools

import numpy as np

from rlhf_lightning.report.grouping import Group
from rlhf_lightning.report.palette import COLOURS, GREY, shaded, spread, styles

#: Full dichromacy in linear RGB: Machado, Oliveira and Fernandes 2009, table 1, severity 1.0.
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour):
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB under D65."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = matrix @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    dark, light = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour)) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def test_colours_are_distinguishable_with_every_colour_vision():
    """CIE76 distance of every pair at least 15; about 2.3 is just noticeable side by side."""
    for matrix in BLINDNESS.values():
        seen = [lab(np.array(matrix) @ linear(colour)) for colour in COLOURS]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_colours_are_seen_on_both_backgrounds():
    for colour in (*COLOURS, GREY):
        assert contrast(colour, "#FFFFFF") > 2
        assert contrast(colour, "#15181D") > 2.7


def groups(*names):
    """``family/method/label``."""
    return [Group(name.split("/")[2], name.split("/")[1], name.split("/")[0], {}, ()) for name in names]


def test_few_groups_have_a_colour_each():
    looks = styles(groups(*(f"f/dpo/{i}" for i in range(8))))
    assert [look.colour for look in looks] == list(COLOURS)


def test_more_groups_share_the_colour_of_their_method():
    looks = styles(groups(*(f"f/{m}/{m} {i}" for i in range(4) for m in ("dpo", "ipo", "kto"))))
    assert {look.hue for look in looks} == {"dpo", "ipo", "kto"}
    assert [look.colour for look in looks[:3]] == list(COLOURS[:3])
    assert len({(look.colour, look.marker, look.dash) for look in looks}) == 12


def test_many_methods_share_the_colour_of_their_family():
    looks = styles(groups(*(f"f{i % 3}/m{i}/m{i}" for i in range(12))))
    assert [look.hue for look in looks[:4]] == ["f0", "f1", "f2", "f0"]
    assert spread(looks, 6) == [0, 1, 2, 3, 4, 5]
    assert spread(looks, 5) == [0, 1, 2]  # a second round would need six


def test_markers_distinguish_groups_when_colours_repeat():
    looks = styles(groups(*(f"f{i % 12}/m{i}/m{i}" for i in range(24))))
    assert len({(look.base, look.marker) for look in looks}) == 12
    assert all(looks[i].marker == looks[i + 12].marker for i in range(12))


def test_the_first_groups_of_a_large_sweep_are_coloured():
    looks = styles(groups(*(f"f/dpo/{i}" for i in range(20))))
    assert [look.colour for look in looks] == [*COLOURS, *[GREY] * 12]
    assert spread(looks) == list(range(8))


def test_shades_stay_legible():
    for colour in COLOURS:
        assert shaded(colour, 0) == colour
        assert len({shaded(colour, member) for member in range(5)}) >= 4
        assert all(contrast(shaded(colour, member), "#FFFFFF") > 1.4 for member in range(5))
