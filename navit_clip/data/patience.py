"""When bad samples are too many: in a row, in all, or all that there are."""

from __future__ import annotations

from typing import Literal

from navit_clip.data.config import DataConfig
from navit_clip.data.faults import Faults
from navit_clip.data.order import Place
from navit_clip.errors import DataError

Stage = Literal["reading", "decoding"]
"""Images are decoded some time after they were read, so each has a row of its own."""


class Patience:
    """Ends a stream whose samples are bad.

    Args:
        config: has the limits.
        faults: counts what is bad.
    """

    def __init__(self, config: DataConfig, faults: Faults):
        self._config = config
        self._faults = faults
        self._in_a_row: dict[Stage, int] = {"reading": 0, "decoding": 0}
        self._bad: set[tuple[int, int]] = set()
        """Since one was decoded that is good; all there are would be too many to keep."""

    def good(self, stage: Stage) -> None:
        """One did well."""
        self._in_a_row[stage] = 0
        if stage == "decoding":
            self._bad.clear()

    def bad(self, stage: Stage, place: Place, num_samples: int | None) -> None:
        """One did not.

        Args:
            stage: where.
            place: of the sample.
            num_samples: of all shards; None while some are yet to be opened.

        Raises:
            DataError: that is the last straw.
        """
        self._in_a_row[stage] += 1
        self._bad.add((place.shard, place.entry))
        if self._in_a_row[stage] >= self._config.max_consecutive_faults:
            raise DataError(f"{self._in_a_row[stage]} bad samples in a row; {self._faults.summary()}")
        if 0 < self._config.max_faults <= self._faults.total:
            raise DataError(f"data.max_faults reached: {self._faults.summary()}")
        # A worker meets every sample of the data set in time, so this ends whatever the number of workers.
        if len(self._bad) == num_samples:
            raise DataError(f"every sample of the shards is bad; {self._faults.summary()}")
