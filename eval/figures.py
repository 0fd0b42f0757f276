"""Rows of metrics.jsonl -> curves as inline SVG.

The SVG carries no colours of its own but the page's (CSS variables), so one drawing reads well in light
and in dark; its text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

MOST_POINTS = 400
"""Longer curves are drawn as means of neighbouring rows."""

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
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}


class Curve(NamedTuple):
    """A line of a figure."""

    label: str
    pairs: np.ndarray
    values: np.ndarray
    chance: float | None = None
    """What guessing gets, as a dashed line."""


class Drawing(NamedTuple):
    """A figure for the page."""

    title: str
    svg: str


class Quantity(NamedTuple):
    """What a train row holds under `key`, and how to draw it."""

    key: str
    title: str
    axis: str
    """Name and unit."""
    factor: float = 1.0
    """Into that unit."""
    limits: tuple[float, float | None] | None = None
    """Of the axis; None lets the curve decide."""


QUANTITIES = (
    Quantity("loss", "Training loss", "sigmoid loss per pair (nats)"),
    Quantity("pairs_per_second", "Pairs per second", "pairs / s", limits=(0.0, None)),
    Quantity("tokens_per_second", "Tokens per second", "image and text tokens / s", limits=(0.0, None)),
    Quantity("fill", "Batch fill", "share of the token budget (%)", factor=100.0, limits=(0.0, 105.0)),
    Quantity("learning_rate", "Learning rate", "learning rate"),
    Quantity("logit_scale", "Logit scale", "exp(t')"),
    Quantity("logit_bias", "Logit bias", "b"),
)

HEADLINES = {
    "zeroshot_classification": ("acc1", "mean_per_class_recall"),
    "zeroshot_retrieval": ("image_retrieval_recall@10", "text_retrieval_recall@10"),
}
"""The metrics of each task that are drawn over training."""


def draw_curves(rows: Sequence[dict[str, Any]]) -> list[Drawing]:
    """One figure per quantity that the rows have, over the pairs seen."""
    train = [row for row in rows if row["kind"] == "train"]
    validation = [row for row in rows if row["kind"] == "validation"]
    drawings = [
        _draw(quantity.title, quantity.axis, [_curve("training", train, quantity)], quantity.limits)
        for quantity in QUANTITIES
        if any(quantity.key in row for row in train)
    ]
    if validation:
        loss = QUANTITIES[0]
        drawings.insert(1, _draw("Validation loss", loss.axis, [_curve("validation", validation, loss)]))
    scores = _score_curves([row for row in rows if row["kind"] == "eval"])
    return drawings + [_draw(title, "score (%)", curves) for title, curves in scores.items()]


def _score_curves(rows: Sequence[dict[str, Any]]) -> dict[str, list[Curve]]:
    """The headline metrics of each task that was run at least twice."""
    figures = {}
    for dataset, task in dict.fromkeys((row["dataset"], row["task"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["task"]) == (dataset, task)]
        if len(own) < 2:
            continue
        pairs = np.array([row["pairs"] for row in own])
        figures[f"{dataset}, {task}"] = [
            Curve(
                metric,
                pairs,
                100 * np.array([row["metrics"][metric] for row in own]),
                chance=100 * own[-1]["chance"][metric],
            )
            for metric in HEADLINES[task]
        ]
    return figures


def _curve(label: str, rows: Sequence[dict[str, Any]], quantity: Quantity) -> Curve:
    """A quantity over pairs, thinned to MOST_POINTS means."""
    key, factor = quantity.key, quantity.factor
    points = np.array([[row["pairs"], factor * row[key]] for row in rows if key in row], dtype=float)
    groups = np.array_split(points, min(MOST_POINTS, len(points)))
    pairs, values = np.array([group.mean(axis=0) for group in groups]).T
    return Curve(label, pairs, values)


def _draw(
    title: str,
    axis: str,
    curves: Sequence[Curve],
    limits: tuple[float, float | None] | None = None,
) -> Drawing:
    # The salt makes the ids inside the SVG its own, and the same at every drawing.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot(xlabel="pairs seen", ylabel=axis)
        for curve, color in zip(curves, SERIES, strict=False):
            marker = "o" if len(curve.pairs) <= 30 else None
            axes.plot(curve.pairs, curve.values, color=color, label=curve.label, marker=marker, markersize=3)
            if curve.chance is not None:
                axes.axhline(curve.chance, color=color, linestyle=(0, (2, 3)), linewidth=1)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if limits is not None:
            axes.set_ylim(*limits)
        if len(curves) > 1:
            # Above the axes: inside them it would lie on the curves.
            figure.legend(title="dashed: chance", loc="outside upper right", ncols=len(curves))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Drawing(title, _for_page(buffer.getvalue(), title))


def _for_page(svg: str, title: str) -> str:
    """Cuts what only a file needs, lets the page set size and colours, and names the picture."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{title}"', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for drawn, painted in PAINT.items():
        svg = svg.replace(drawn, painted)
    return svg
