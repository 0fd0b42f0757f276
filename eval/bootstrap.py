"""Percentile bootstrap: what a metric comes to on data sets resampled with replacement.

Draws are seeded, so equal results have equal intervals; all metrics of a result see the same resamples.
What is resampled is the image, with all that belongs to it: captions of one image are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int64

NUM_RESAMPLES = 1000
LEVEL = 0.95
DRAWS_AT_ONCE = 4_000_000
"""Resampled items held in memory together."""


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

    def sums(self, values: Float[np.ndarray, " items"]) -> Float[np.ndarray, " resamples"]:
        """The sum of the values over each resample."""
        return np.concatenate([counts @ values for counts in self._counts()])

    def group_sums(
        self, values: Float[np.ndarray, " items"], groups: Int64[np.ndarray, " items"], num_groups: int
    ) -> Float[np.ndarray, "resamples groups"]:
        """The sum of the values of each group of items, over each resample."""
        order = np.argsort(groups, kind="stable")
        present, starts = np.unique(groups[order], return_index=True)
        sums = np.zeros((self.num_resamples, num_groups))
        first = 0
        for counts in self._counts():
            weighted = counts[:, order] * values[order]
            sums[first : first + len(counts), present] = np.add.reduceat(weighted, starts, axis=1)
            first += len(counts)
        return sums

    def mean_interval(self, values: Float[np.ndarray, " items"]) -> tuple[float, float]:
        """The interval of the values' mean."""
        return self.interval(self.sums(values) / self.num_items)

    def interval(self, statistics: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
        """The middle 95 % of a statistic over the resamples."""
        low, high = np.quantile(statistics, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def _counts(self) -> Iterator[Float[np.ndarray, "some_resamples items"]]:
        """How often each resample holds each item, a few resamples at a time; the same at every call."""
        generator = np.random.default_rng(self._seed)
        at_once = max(1, DRAWS_AT_ONCE // self.num_items)
        for first in range(0, self.num_resamples, at_once):
            rows = min(at_once, self.num_resamples - first)
            drawn = generator.integers(self.num_items, size=(rows, self.num_items))
            drawn += self.num_items * np.arange(rows)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=rows * self.num_items)
            yield counts.reshape(rows, self.num_items).astype(np.float64)
