"""Rows of metrics.jsonl -> curves of the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import EngFormatter

from eval.drawing import INK, SERIES, Drawing, canvas

MOST_POINTS = 400
"""Longer curves are drawn as means of neighbouring rows."""


class Curve(NamedTuple):
    """A line of a figure."""

    label: str
    pairs: np.ndarray
    values: np.ndarray
    chance: float | None = None
    """What guessing gets, as a dashed line."""


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
    Quantity("data_wait", "Waiting for data", "share of the time (%)", factor=100.0, limits=(0.0, None)),
    Quantity("fill", "Batch fill", "share of the token budget (%)", factor=100.0, limits=(0.0, 105.0)),
    Quantity("learning_rate", "Learning rate", "learning rate"),
    Quantity("gradient_norm", "Gradient norm", "norm, before clipping", limits=(0.0, None)),
    Quantity("logit_scale", "Logit scale", "exp(t')"),
    Quantity("logit_bias", "Logit bias", "b"),
)

HEADLINES = {
    "zeroshot_classification": ("acc1", "mean_per_class_recall"),
    "zeroshot_retrieval": ("image_retrieval_recall@10", "text_retrieval_recall@10"),
}
"""The metrics of each task that are drawn over training."""


def draw_curves(rows: Sequence[dict[str, Any]]) -> list[Drawing]:
    """One figure per quantity of which the rows have two points or more, over the pairs seen.

    A dotted line stands where the run was resumed.
    """
    marks = resumed_at(rows)
    train = [row for row in rows if row["kind"] == "train"]
    validation = [row for row in rows if row["kind"] == "validation"]
    drawings = [_draw_quantity(quantity, "training", train, marks) for quantity in QUANTITIES]
    loss = QUANTITIES[0]._replace(title="Validation loss")
    drawings.insert(1, _draw_quantity(loss, "validation", validation, marks))
    scores = _score_curves([row for row in rows if row["kind"] == "eval"])
    return [drawing for drawing in drawings if drawing is not None] + [
        _draw(title, "score (%)", curves, marks) for title, curves in scores.items()
    ]


def resumed_at(rows: Sequence[dict[str, Any]]) -> list[int]:
    """The pairs that the run had seen each time that it was resumed."""
    return sorted({row["pairs"] for row in rows if row["kind"] == "resumed"})


def _draw_quantity(
    quantity: Quantity, label: str, rows: Sequence[dict[str, Any]], marks: Sequence[int]
) -> Drawing | None:
    """The curve of a quantity; nothing where one point is all that there is."""
    points = _points(rows, quantity)
    points = whole_windows(points) if label == "training" and len(points) else points
    if len(points) < 2:
        return None
    return _draw(quantity.title, quantity.axis, [_curve(label, points)], marks, quantity.limits)


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


def _curve(label: str, points: np.ndarray) -> Curve:
    """Rows of pairs seen and a value, thinned to MOST_POINTS means."""
    groups = np.array_split(points, min(MOST_POINTS, len(points)))
    pairs, values = np.array([group.mean(axis=0) for group in groups]).T
    return Curve(label, pairs, values)


def _points(rows: Sequence[dict[str, Any]], quantity: Quantity) -> np.ndarray:
    key = quantity.key
    return np.array([[row["pairs"], quantity.factor * row[key]] for row in rows if key in row], dtype=float)


def whole_windows(points: np.ndarray) -> np.ndarray:
    """Means since the point before, where those of few pairs are part of that point: both by their pairs.

    Training also writes a row where it saves, of whatever steps there were since the last: of a few, perhaps,
    whose mean says little and is drawn as large as any.
    """
    pairs = np.diff(points[:, 0], prepend=0.0)
    starts = [0, *(n for n in range(1, len(points)) if pairs[n] >= np.median(pairs) / 2)]
    ends = np.array([*starts[1:], len(points)]) - 1
    sums = np.add.reduceat(pairs * points[:, 1], starts)
    return np.stack([points[ends, 0], sums / np.add.reduceat(pairs, starts)], axis=1)


def _draw(
    title: str,
    axis: str,
    curves: Sequence[Curve],
    marks: Sequence[int],
    limits: tuple[float, float | None] | None = None,
) -> Drawing:
    with canvas(title, "pairs seen", axis) as drawn:
        for curve, color in zip(curves, SERIES, strict=False):
            marker = "o" if len(curve.pairs) <= 30 else None
            drawn.axes.plot(
                curve.pairs, curve.values, color=color, label=curve.label, marker=marker, markersize=3
            )
            if curve.chance is not None:
                drawn.axes.axhline(curve.chance, color=color, linestyle=(0, (2, 3)), linewidth=1)
        for pairs in marks:
            drawn.axes.axvline(pairs, color=INK, linestyle=(0, (1, 2)), linewidth=0.8)
        drawn.axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if limits is not None:
            drawn.axes.set_ylim(*limits)
        if len(curves) > 1:
            drawn.legend(title="dashed: chance")
        return drawn.drawing()
