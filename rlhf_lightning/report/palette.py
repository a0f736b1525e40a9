"""One look a group, the same in every figure and table of a report."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.report.grouping import Group

#: Told apart by people with protanopia, deuteranopia and tritanopia (a test simulates them), on white and near black.
#: From Okabe and Ito's set, with the colours replaced that are lost on one of the two backgrounds.
COLOURS = ("#1170C4", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#C8102E", "#117733")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.6), (1.4, 1.4), (7, 1.6, 1.4, 1.6), (3, 1.2), (9, 2))
GREY = "#8d949e"  #: groups that are drawn but not named
_REST = "others"


@dataclass(frozen=True)
class Style:
    """How a group is drawn."""

    colour: str
    marker: str
    dash: tuple[float, ...]
    hue: str  #: what the colour stands for: the group's own label, its method or its family
    base: str  #: the colour of the hue, of which ``colour`` is a shade


def styles(groups: Sequence[Group]) -> list[Style]:
    """A style for each group.

    Up to eight groups have a colour each. Of more groups the colour is that of the method, of more than eight methods
    that of the family; marker, dash and lightness then tell the members of a colour apart, of which the first has the
    colour itself. Of more than eight families every one has a colour together with a marker. Of more than eight groups
    of a single method the first eight have a colour each, the others are grey.

    Args:
        groups: the most important ones first.
    """
    hues = hue_names(groups)
    order = list(dict.fromkeys(hues))
    found: list[Style] = []
    for index, hue in enumerate(hues):
        rank = order.index(hue)
        member = hues[:index].count(hue)
        # Where colours come round again, colour and marker together say which one is meant.
        place = rank // len(COLOURS) if len(order) > len(COLOURS) else rank + member
        marker = MARKERS[place % len(MARKERS)]
        base = GREY if hue == _REST else COLOURS[rank % len(COLOURS)]
        colour = base if hue == _REST else shaded(base, member)
        found.append(Style(colour, marker, DASHES[member % len(DASHES)], hue, base))
    return found


def hue_names(groups: Sequence[Group]) -> list[str]:
    """What the colour of each group stands for."""
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
    """Which groups to name where every one of them must be told apart: the first of each colour, in rounds.

    A further round is taken as long as it fits, so few colours have several members.

    Args:
        looks: of the groups, the most important ones first.
        most: groups.

    Returns:
        Their indices, ascending.
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
    """The colour itself, then alternately a little darker and lighter, within what is legible on both backgrounds."""
    if member == 0:
        return colour
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    step = (0.09, -0.07, 0.16, -0.12)[(member - 1) % 4]
    parts = colorsys.hls_to_rgb(hue, min(0.68, max(0.30, lightness + step)), saturation)
    return "#" + "".join(f"{round(part * 255):02X}" for part in parts)
