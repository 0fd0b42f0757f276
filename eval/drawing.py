"""matplotlib figures -> inline SVG that takes its colours from the page.

The SVG carries no colours of its own but CSS variables, so one drawing reads well in light and in dark; its
text stays text.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PAINT = {"#0000a1": "var(--ink)", "#0000a2": "var(--faint)"} | {
    f"#0000b{number}": f"var(--series-{number})" for number in range(4)
}
"""Colours that matplotlib draws with, and what the page paints instead."""
INK, FAINT, *SERIES = PAINT

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}


class Drawing(NamedTuple):
    """A figure for the page."""

    title: str
    svg: str


class Canvas:
    """A figure with one pair of axes, which becomes a drawing."""

    def __init__(self, title: str, x: str, y: str, height: float = 2.7):
        self.title = title
        self.figure = Figure(figsize=(5.2, height), layout="constrained")
        self.axes: Axes = self.figure.add_subplot(xlabel=x, ylabel=y)

    def legend(self, title: str = "", columns: int = 2) -> None:
        """Above the axes: inside them it would lie on the curves."""
        handles, labels = self.axes.get_legend_handles_labels()
        if len(handles) > 1 or title:
            place = {"loc": "outside upper right", "ncols": min(len(handles), columns)}
            self.figure.legend(handles, labels, title=title or None, **place)

    def drawing(self) -> Drawing:
        """The figure as SVG, the same at every drawing."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return Drawing(self.title, _for_page(buffer.getvalue(), self.title))


@contextmanager
def canvas(title: str, x: str, y: str, height: float = 2.7) -> Iterator[Canvas]:
    """A figure to draw on, in the page's style.

    Args:
        title: names the picture to those who do not see it; told apart by it, ids in the page do not clash.
        x: what the axis shows, and its unit.
        y: likewise.
        height: in inches, of a width of 5.2.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        yield Canvas(title, x, y, height)


def _for_page(svg: str, title: str) -> str:
    """Cuts what only a file needs, lets the page set size and colours, and names the picture."""
    svg = svg[svg.index("<svg") :]
    label = html.escape(title, quote=True)
    svg = re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: f'role="img" aria-label="{label}"', svg, count=1
    )
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for drawn, painted in PAINT.items():
        svg = svg.replace(drawn, painted)
    return svg
