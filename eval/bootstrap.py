"""Percentile bootstrap: what a metric comes to on data sets resampled with replacement.

Draws are seeded, so equal results have equal intervals; all metrics of a result see the same resamples.
What is resampled is the image, with all that belongs to it: captions of one image are not independent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

NUM_RESAMPLES = 1000
LEVEL = 0.95
DRAWS_AT_ONCE = 2_000_000
"""Resampled items held in memory together."""

Interval = tuple[float, float]


class Totals(NamedTuple):
    """Values that are added up over each resample, group by group."""

    values: Float[np.ndarray, " items"]
    groups: Int64[np.ndarray, " items"] | None = None
    """The group of each item; without it, all are one."""
    num_groups: int = 1

    def sums(self) -> Float[np.ndarray, " groups"]:
        """Over the items as they are."""
        return _sum_rows(self, np.arange(len(self.values))[None])[0]


class Bootstrap:
    """Resamples of a number of items.

    Args:
        num_items: how many there are; each resample draws as many.
        num_resamples: how many times.
        seed: of the draws.
    """

    def __init__(self, num_items: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0):
        self.num_items = num_items
        self.num_resamples = num_resamples
        self._seed = seed

    def totals(self, *wanted: Totals) -> list[Float[np.ndarray, "resamples groups"]]:
        """Sums over each resample, for all that is wanted from the same draws."""
        sums = [np.empty((self.num_resamples, total.num_groups)) for total in wanted]
        generator = np.random.default_rng(self._seed)
        at_once = max(1, DRAWS_AT_ONCE // self.num_items)
        for first in range(0, self.num_resamples, at_once):
            rows = min(at_once, self.num_resamples - first)
            drawn = generator.integers(self.num_items, size=(rows, self.num_items))
            for total, out in zip(wanted, sums, strict=True):
                out[first : first + rows] = _sum_rows(total, drawn)
        return sums

    def mean_intervals(self, *values: Float[np.ndarray, " items"]) -> list[Interval]:
        """The interval of the mean of each."""
        totals = self.totals(*(Totals(column) for column in values))
        return [interval(total[:, 0] / self.num_items) for total in totals]


def interval(statistics: Float[np.ndarray, " resamples"]) -> Interval:
    """The middle 95 % of a statistic over the resamples."""
    low, high = np.quantile(statistics, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _sum_rows(total: Totals, drawn: Int64[np.ndarray, "rows items"]) -> Float[np.ndarray, "rows groups"]:
    if total.groups is None:
        return total.values[drawn].sum(axis=1, keepdims=True)
    cells = total.groups[drawn] + total.num_groups * np.arange(len(drawn))[:, None]
    sums = np.bincount(cells.ravel(), total.values[drawn].ravel(), len(drawn) * total.num_groups)
    return sums.reshape(len(drawn), total.num_groups)
