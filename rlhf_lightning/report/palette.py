"""One style per group, the same in every figure and table of a report."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.report.grouping import Group

#: Distinguishable with protanopia, deuteranopia and tritanopia (a test simulates them), on white and near black.
#: Based on Okabe and Ito's palette; colours that are illegible on one of the two backgrounds are replaced.
COLOURS = ("#1170C4", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#C8102E", "#117733")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.6), (1.4, 1.4), (7, 1.6, 1.4, 1.6), (3, 1.2), (9, 2))
GREY = "#8d949e"  #: groups that are drawn but not named
_REST = "others"


@dataclass(frozen=True)
class Style:
    """Colour, marker and dash of a group."""

    colour: str
    marker: str
    dash: tuple[float, ...]
    hue: str  #: meaning of the colour: the group's label, its method or its family
    base: str  #: the colour of the hue, of which ``colour`` is a shade


def styles(groups: Sequence[Group]) -> list[Style]:
    """Choose a style for each group.

    Up to eight groups have a colour each. With more groups, the colour stands for the method; with more than eight
    methods, for the family. Marker, dash and lightness then distinguish groups of the same colour; the first one has
    the unchanged colour. More than eight families are distinguished by colour and marker together. With more than
    eight groups of a single method, the first eight have a colour each and the others are grey.

    Args:
        groups: the groups, most important first.
    """
    hues = hue_names(groups)
    order = list(dict.fromkeys(hues))
    chosen: list[Style] = []
    for index, hue in enumerate(hues):
        rank = order.index(hue)
        member = hues[:index].count(hue)
        # When colours repeat, colour and marker together identify a hue.
        marker_number = rank // len(COLOURS) if len(order) > len(COLOURS) else rank + member
        marker = MARKERS[marker_number % len(MARKERS)]
        base = GREY if hue == _REST else COLOURS[rank % len(COLOURS)]
        colour = base if hue == _REST else shaded(base, member)
        chosen.append(Style(colour, marker, DASHES[member % len(DASHES)], hue, base))
    return chosen


def hue_names(groups: Sequence[Group]) -> list[str]:
    """Meaning of each group's colour: a label, a method or a family."""
    labels = [group.label for group in groups]
    if len(labels) <= len(COLOURS):
        return labels
    methods = [group.method for group in groups]
    if len(set(methods)) == 1:
        return [label if rank < len(COLOURS) else _REST for rank, label in enumerate(labels)]
    if len(set(methods)) <= len(COLOURS):
        return methods
    families = [group.family for group in groups]
    return families if len(set(families)) > 1 else methods


def spread(looks: Sequence[Style], most: int = len(COLOURS)) -> list[int]:
    """Choose the groups to name so that all can be distinguished: the first of each colour, then the second, and so on.

    Another member of each colour is added as long as all of them fit.

    Args:
        looks: styles of the groups, most important first.
        most: maximum number of groups.

    Returns:
        Indices of the chosen groups, ascending.
    """
    seen: dict[str, int] = {}
    rounds: dict[int, list[int]] = {}
    for index, look in enumerate(looks):
        if look.hue != _REST:
            seen[look.hue] = seen.get(look.hue, -1) + 1
            rounds.setdefault(seen[look.hue], []).append(index)
    named: list[int] = []
    for one in rounds.values():
        if named and len(named) + len(one) > most:
            break
        named += one
    return sorted(named)[:most]


def shaded(colour: str, member: int) -> str:
    """Shade of a colour: unchanged first, then alternately darker and lighter, legible on both backgrounds."""
    if member == 0:
        return colour
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    step = (0.09, -0.07, 0.16, -0.12)[(member - 1) % 4]
    parts = colorsys.hls_to_rgb(hue, min(0.68, max(0.30, lightness + step)), saturation)
    return "#" + "".join(f"{round(part * 255):02X}" for part in parts)
