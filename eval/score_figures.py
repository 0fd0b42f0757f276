"""Results -> reliability diagrams, and what accuracy costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.calibration import NUM_BUCKETS
from eval.drawing import FAINT, INK, SERIES, Drawing, canvas

WAYS = ("resized", "not upscaled", "dropped")
"""Ways of spending tokens that are curves; a cascade is a cloud of points with a front."""


def draw_reliability(title: str, records: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Accuracy over confidence; the area of a point is its share of the images.

    Args:
        title: of the figure.
        records: a label -> a classification's record.
    """
    axis = f"confidence: probability of the answer ({NUM_BUCKETS} buckets)"
    with canvas(title, axis, "accuracy: share that is right", height=3.2) as drawn:
        drawn.axes.plot([0, 1], [0, 1], color=FAINT, linestyle=(0, (2, 3)), linewidth=1)
        for (label, record), color in zip(records.items(), SERIES, strict=False):
            buckets = record["reliability"]
            total = sum(bucket["count"] for bucket in buckets)
            x, y = ([bucket[name] for bucket in buckets] for name in ("confidence", "accuracy"))
            areas = [6 + 160 * bucket["count"] / total for bucket in buckets]
            drawn.axes.plot(x, y, color=color, linewidth=1)
            drawn.axes.scatter(
                x,
                y,
                s=areas,
                color=color,
                alpha=0.7,
                linewidths=0,
                label=f"{label}, ECE {record['metrics']['ece']:.3f}",
            )
        drawn.axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        drawn.legend(title="dashed: confidence that can be believed", columns=1)
        return drawn.drawing()


def draw_cost(title: str, points: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """acc1 over tokens per image and over measured time, with intervals and the cascades' front."""
    return [
        _draw_cost(f"{title}: accuracy over tokens", "tokens per image, mean", points, "mean_tokens", 1.0),
        _draw_cost(
            f"{title}: accuracy over time",
            "image tower, milliseconds per image, measured",
            points,
            "seconds_per_image",
            1000.0,
        ),
    ]


def pareto_front(points: Sequence[Mapping[str, Any]], cost: str) -> list[Mapping[str, Any]]:
    """The points than which no other is at once as cheap and as accurate, from the cheapest on."""
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda point: (point[cost], -point["acc1"])):
        if not front or point["acc1"] > front[-1]["acc1"]:
            front.append(point)
    return front


def _draw_cost(
    title: str, axis: str, points: Sequence[Mapping[str, Any]], cost: str, factor: float
) -> Drawing:
    with canvas(title, axis, "acc1 (%)", height=3.2) as drawn:
        for way, color in zip(WAYS, SERIES, strict=False):
            own = [point for point in points if point["way"] == way]
            x, y = [factor * point[cost] for point in own], [100 * point["acc1"] for point in own]
            low = [max(0.0, 100 * (point["acc1"] - point["interval"][0])) for point in own]
            high = [max(0.0, 100 * (point["interval"][1] - point["acc1"])) for point in own]
            drawn.axes.errorbar(
                x,
                y,
                (low, high),
                color=color,
                marker="o",
                markersize=3.5,
                elinewidth=0.8,
                capsize=2,
                label=way,
            )
        cascades = [point for point in points if point["way"] == "cascade"]
        drawn.axes.scatter(
            [factor * point[cost] for point in cascades],
            [100 * point["acc1"] for point in cascades],
            s=7,
            color=SERIES[3],
            linewidths=0,
            label="cascade",
        )
        front = pareto_front([point for point in points if point["way"] != "dropped"], cost)
        drawn.axes.step(
            [factor * point[cost] for point in front],
            [100 * point["acc1"] for point in front],
            where="post",
            color=INK,
            linewidth=1,
            label="Pareto front",
        )
        drawn.legend(title="bars: 95 % of resamples", columns=3)
        return drawn.drawing()
