"""Numbers -> a histogram as inline SVG, in the colours of its page, so that it reads in light and dark."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 28, 42


def histogram(
    values: Sequence[int | float],
    counted: str,
    axis: str,
    ticks: Sequence[int | float],
    logarithmic: bool = False,
    num_bins: int = 40,
) -> str:
    """How many values lie where, between the first tick and the last; what lies beyond counts at the ends.

    Args:
        values: what to count, at least one.
        counted: names what the bars count.
        axis: names the values, and their unit.
        ticks: ascending places on the axis that are labelled.
        logarithmic: whether equal ratios are equally far apart.
        num_bins: how many bars.
    """
    scale = np.log if logarithmic else np.asarray
    low, high = (float(scale(tick)) for tick in (ticks[0], ticks[-1]))
    shares = np.clip((scale(np.asarray(values, dtype=float)) - low) / (high - low), 0, 1)
    counts, _ = np.histogram(shares, num_bins, (0, 1))
    most = max(int(counts.max()), 1)
    bottom, span = HEIGHT - _BOTTOM, HEIGHT - _BOTTOM - _TOP
    step = (WIDTH - _LEFT - _RIGHT) / num_bins
    bars = "".join(
        f'<rect x="{_LEFT + bin * step + 0.5:.1f}" y="{bottom - span * count / most:.1f}" '
        f'width="{step - 1:.1f}" height="{span * count / most:.1f}" rx="1"><title>{count:,}</title></rect>'
        for bin, count in enumerate(counts)
        if count
    )
    labels = "".join(
        _text(_across(scale, tick, low, high), bottom + 16, f"{tick:g}", "middle") for tick in ticks
    )
    heights = "".join(
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        + _text(_LEFT - 6, y + 4, f"{round(most * share):,}", "end")
        for share, y in ((share, bottom - span * share) for share in (0, 0.5, 1))
    )
    names = _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, axis, "middle") + _text(0, 14, counted, "start")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Histogram: {html.escape(axis)}">'
        f"{heights}{bars}{labels}{names}</svg>"
    )


def _across(scale: Callable[[Any], Any], tick: int | float, low: float, high: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * (float(scale(tick)) - low) / (high - low)


def _text(x: int | float, y: int | float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
