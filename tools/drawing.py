"""Boxes, arrows and texts as an SVG file that is read on a light and on a dark page: it brings its own paper."""

from __future__ import annotations

from html import escape
from pathlib import Path

INK, FAINT, RULE, PAPER = "#20262e", "#5f6873", "#c3cad2", "#fffffe"
BLUE, GREEN, ORANGE, GREY = "#dbe9f7", "#d9f0e4", "#fbe6d4", "#eef0f3"
_FONT = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


class Drawing:
    """A drawing in pixels, of a width that a phone shows legibly.

    Args:
        height: of the paper.
        alt: what it shows, for those who cannot see it.
        width: of the paper.
    """

    def __init__(self, height: float, alt: str, width: float = 600) -> None:
        self.width, self.height, self.alt = width, height, alt
        self.parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str = GREY, line: str = RULE) -> None:
        """A rectangle with round corners."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{line}"/>'
        )

    def text(
        self, x: float, y: float, words: str, *, size: float = 15, bold: bool = False, fill: str = INK,
        anchor: str = "start", mono: bool = False,
    ) -> None:  # fmt: skip
        """A line of text; ``y`` is its base line."""
        weight = ' font-weight="600"' if bold else ""
        family = " font-family=\"ui-monospace, Menlo, 'DejaVu Sans Mono', monospace\"" if mono else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" text-anchor="{anchor}"{weight}{family}>'
            f"{escape(words, quote=False)}</text>"
        )

    def note(
        self,
        x: float,
        y: float,
        width: float,
        lines: list[str],
        *,
        fill: str = GREY,
        size: float = 15,
        step: float = 20,
    ) -> float:
        """A box with a bold first line; the height it took."""
        height = step * len(lines) + 14
        self.box(x, y, width, height, fill)
        for number, words in enumerate(lines):
            self.text(x + 12, y + 23 + step * number, words, size=size if number == 0 else size - 1.5, bold=number == 0)
        return height

    def arrow(self, *corners: tuple[float, float], words: str = "") -> None:
        """A line through corners with a head at its end, and words beside its middle."""
        path = " ".join(f"{'M' if at == 0 else 'L'}{x:g} {y:g}" for at, (x, y) in enumerate(corners))
        self.parts.append(f'<path d="{path}" fill="none" stroke="{FAINT}" stroke-width="1.6" marker-end="url(#head)"/>')
        if words:
            (x0, y0), (x1, y1) = corners[0], corners[1]
            self.text((x0 + x1) / 2 + 8, (y0 + y1) / 2 + 5, words, size=13, fill=FAINT)

    def svg(self) -> str:
        """The file's text."""
        head = (
            f'<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            f'<path d="M0 0 L8 4 L0 8 z" fill="{FAINT}"/></marker>'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
                f'width="{self.width:g}" height="{self.height:g}" role="img" font-family="{_FONT}">',
                f"<title>{escape(self.alt, quote=False)}</title>",
                f"<defs>{head}</defs>",
                f'<rect width="{self.width:g}" height="{self.height:g}" rx="10" fill="{PAPER}"/>',
                *self.parts,
                "</svg>\n",
            ]
        )

    def save(self, path: Path) -> None:
        """Write the file."""
        path.write_text(self.svg(), encoding="utf-8")
