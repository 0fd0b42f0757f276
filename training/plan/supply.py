"""What the data has to deliver for ranks not to wait."""

from __future__ import annotations

from dataclasses import dataclass

from training.config import RunConfig
from training.plan.hardware import Hardware

SAMPLE_BYTES = 50_000
"""Of an image with its caption, as img2dataset leaves it at 256 to 512 pixels."""
SAMPLES_PER_SHARD = 10_000
"""img2dataset's."""
SPARE = 1.3
"""Cores and bandwidth beyond the mean, so that a slow disk or a large image holds nothing up."""


@dataclass(frozen=True, kw_only=True)
class Supply:
    """Of a whole run, but where it says a rank."""

    images_per_second: float
    cores_per_rank: float
    """Busy with decoding, resizing and cutting."""
    storage_rate: float
    """Bytes a second, all ranks."""
    shards: int
    """Of one epoch of as many samples as the run has pairs; the fewest that feed every worker are fewer."""
    fewest_shards: int


def supply_of(config: RunConfig, pairs_per_second: float, num_ranks: int, hardware: Hardware) -> Supply:
    """For a run that trains on so many pairs a second."""
    workers = num_ranks * max(1, config.data.num_workers)
    return Supply(
        images_per_second=pairs_per_second,
        cores_per_rank=SPARE * pairs_per_second / num_ranks / hardware.decode_rate,
        storage_rate=SPARE * pairs_per_second * SAMPLE_BYTES,
        shards=-(-config.pairs // SAMPLES_PER_SHARD),
        fewest_shards=-(-workers // config.data.blocks_per_shard),
    )
