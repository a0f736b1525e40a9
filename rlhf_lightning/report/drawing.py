"""Figures that are PNGs on white and SVGs that take their text colour from the page, light or dark."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Figures use exactly these colours, which the SVG replaces by the page's variables; they are legible on white.
INK, FAINT, RULE, PAPER = "#20262e", "#5f6873", "#d9dee4", "#fffffe"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", RULE: "var(--rule)", PAPER: "var(--paper)"}
_SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": FAINT,
    "axes.edgecolor": RULE,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 5),
    "axes.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "text.parse_math": False,  # a metric or an option may be called anything
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf-report",
    "path.simplify_threshold": 0.4,
}


@dataclass(frozen=True)
class Entry:
    """A line of a legend."""

    label: str
    colour: str
    dashed: bool


class Picture:
    """A finished figure, displayed by notebooks."""

    def __init__(self, figure: Figure, name: str, alt: str) -> None:
        self.figure, self.name, self.alt = figure, name, alt

    def save(self, path: str | Path, dpi: int = 150) -> Path:
        """Write the figure as a PNG, or in the format of the suffix (``.svg``, ``.pdf``)."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _theme():
            self.figure.savefig(path, dpi=dpi)
        return path

    def svg(self) -> str:
        """The figure as an ``<svg>`` element for a page that sets ``--ink``, ``--faint``, ``--rule``, ``--paper``."""
        buffer = io.StringIO()
        with _theme():
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return inlined(buffer.getvalue(), self.name, self.alt)

    def panels(self) -> list[str]:
        """Each panel as an ``<svg>`` that shows its part of :meth:`svg`, for pages too narrow for the grid; or none."""
        axes = [one for one in self.figure.axes if one.axison]
        if len(axes) < 2:
            return []
        with _theme():
            self.figure.draw_without_rendering()
            boxes = [box.padded(4) for one in axes if (box := one.get_tightbbox()) is not None]
        points = 72 / self.figure.dpi  # an SVG is in points, from the top
        top = self.figure.bbox.y1
        views = [(box.x0, top - box.y1, box.width, box.height) for box in boxes]
        texts = [" ".join(f"{number * points:.1f}" for number in view) for view in views]
        return [
            f'<svg viewBox="{text}" role="img" aria-label="{escape(one.get_title(loc="left"))}">'
            f'<use href="#{_prefix(self.name)}-figure_1"/></svg>'
            for one, text in zip(axes, texts, strict=True)
        ]

    def legend(self) -> list[Entry]:
        """Entries of the figure's legend, for a page that shows its panels one by one."""
        from matplotlib.colors import to_hex

        shown = [pair for one in self.figure.legends for pair in zip(one.legend_handles, one.get_texts(), strict=True)]
        return [Entry(text.get_text(), to_hex(_colour(handle)), _dashed(handle)) for handle, text in shown]

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with _theme():
            self.figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


@contextmanager
def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Open a figure (size in inches) with a grid of axes (rows, columns), drawn in the style of the report."""
    with _theme():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        engine: Any = figure.get_layout_engine()
        engine.set(h_pad=0.09, w_pad=0.06)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def inlined(svg: str, name: str, alt: str) -> str:
    """Turn an SVG file into an element of a page: no prolog, unique ids, scaled to the page, colours as variables."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = _prefix(name)
    svg = re.sub(r'\bid="(group-[^"]*)"', r'class="\1"', svg)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d{2})\d+", r"\1", tag.group()), svg)  # not in texts
    svg = svg.replace("'DejaVu Sans'", "var(--font)").replace("DejaVu Sans", "var(--font)")
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height|xmlns:xlink|version)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(alt)}"><title>{escape(alt)}</title>{rest}'


def shared_legend(figure: Figure, handles: Sequence[Artist], size: float = 8.5) -> None:
    """Put one legend below all panels, with as many columns as its longest label leaves room for."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    room = figure.get_figwidth() * 72 / (longest * 0.58 * size + 4.5 * size)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(1, min(4, int(room), len(handles))), fontsize=size
    )


def wrapped(title: str, characters: int = 40) -> str:
    """The title of one of three panels side by side, in as many lines as it needs."""
    return "\n".join(textwrap.wrap(title, characters)) or title


def plain_axes(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Title and labels; ticks without marks."""
    axes.set_title(title, pad=8)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(length=0)


def _prefix(name: str) -> str:
    """Beginning of all ids of a picture in a page."""
    return re.sub(r"\W+", "-", name)


def _colour(handle: Any) -> Any:
    """Colour of a line, or of a patch."""
    return handle.get_color() if hasattr(handle, "get_color") else handle.get_facecolor()


def _dashed(handle: Any) -> bool:
    return hasattr(handle, "is_dashed") and bool(handle.is_dashed())


@contextmanager
def _theme() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        yield
