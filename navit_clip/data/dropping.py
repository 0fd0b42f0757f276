"""Token dropping: an image keeps a random subset of its patches (NaViT, "continuous token dropping").

The rate is constant, or drawn for each image: from a Beta distribution, or around a mean that rises with the
image's number of patches. A schedule moves the constant, or the Beta's mean, over the images seen. It is all
drawn before patches are copied, so a dropped patch costs nothing. One patch always stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Int64

from navit_clip.data.draws import Random, truncated_normal
from navit_clip.errors import ConfigError

BETA_TOTAL = 7 / 3
"""alpha + beta of NaViT's Beta distribution, whose variance is 0.3 mean (1 - mean)."""


@dataclass(frozen=True, kw_only=True)
class RateSchedule:
    """rate(n) = min_rate + (max_rate - min_rate) sigmoid((n - midpoint) / timescale), n images seen."""

    min_rate: float = 0.2
    """The lowest rate."""
    max_rate: float = 0.8
    """The highest rate."""
    midpoint_images: int
    """Images seen, over all ranks, when the rate is half way."""
    timescale_images: int
    """Images that it takes from half way to three quarters, about; below 0 the rate falls, which NaViT finds
    the better."""

    def __post_init__(self):
        for name in ("min_rate", "max_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected a share in [0, 1), found {getattr(self, name)}")
        if self.max_rate < self.min_rate:
            raise ConfigError(
                f"max_rate: expected at least min_rate, which is {self.min_rate}, found {self.max_rate}"
            )
        if self.timescale_images == 0:
            raise ConfigError(
                "timescale_images: expected images, above 0 for a rate that rises, below for a falling one, "
                "found 0"
            )

    def rate(self, images_seen: float) -> float:
        """The rate after so many images."""
        steepness = (images_seen - self.midpoint_images) / self.timescale_images
        return self.min_rate + (self.max_rate - self.min_rate) * 0.5 * (1 + math.tanh(steepness / 2))


@dataclass(frozen=True, kw_only=True)
class DropConfig:
    """Which share of its patches an image loses."""

    kind: Literal["constant", "beta", "by_length"] = "constant"
    """constant: all images the same share; beta: each its own; by_length: longer images more."""
    rate: float = 0.0
    """Constant: the share. Beta: the mean share."""
    max_rate: float = 0.9
    """Beta: the largest share that an image may lose (NaViT's d_max)."""
    short_rate: float = 0.1
    """By length: the mean share of the smallest images that the resolution's range has."""
    long_rate: float = 0.9
    """By length: that of its largest; in between it is linear in the number of patches."""
    deviation: float = 0.02
    """By length: standard deviation of an image's share around that mean; cut off at twice this. (The paper
    does not say whether its 0.02 is the deviation or the variance.)"""
    schedule: RateSchedule | None = None
    """Constant and beta: moves the share, or its mean, over training, in place of `rate`; needs
    data.images_per_epoch."""

    def __post_init__(self):
        for name, kinds in _USED_BY.items():
            if self.kind not in kinds and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(f"{name}: only kind {' or '.join(kinds)} has it, found kind {self.kind}")
        if not 0 <= self.rate < 1:
            raise ConfigError(f"rate: expected a share in [0, 1), found {self.rate}")
        if not 0 < self.max_rate < 1:
            raise ConfigError(f"max_rate: expected a share in (0, 1), found {self.max_rate}")
        if not 0 <= self.deviation < 0.25:
            raise ConfigError(
                f"deviation: expected in [0, 0.25), so that two to each side fit, found {self.deviation}"
            )
        for name in ("short_rate", "long_rate"):
            rate, room = getattr(self, name), 2 * self.deviation
            if not room <= rate < 1 - room:
                raise ConfigError(
                    f"{name}: expected in [{room:g}, {1 - room:g}), so that two deviations fit, found {rate}"
                )
        if self.schedule and self.rate:
            raise ConfigError(f"rate: the schedule decides it; leave it at 0, found {self.rate}")
        if self.kind == "beta":
            lowest, highest = self._means()
            if not 0 < lowest <= highest < self.max_rate:
                raise ConfigError(
                    f"rate: expected a mean in (0, max_rate), which is {self.max_rate}, found {lowest}"
                    + (f" to {highest} over the schedule" if self.schedule else "")
                )

    def draw_rate(self, random: Random, images_seen: float, length: float) -> float:
        """The share that an image loses.

        Args:
            random: the sample's own.
            images_seen: over all ranks, when this image comes.
            length: where its number of patches lies between the smallest, 0, and the largest, 1.
        """
        if self.kind == "by_length":
            mean = self.short_rate + (self.long_rate - self.short_rate) * min(max(length, 0.0), 1.0)
            return mean + self.deviation * truncated_normal(random, -2.0, 2.0)
        mean = self.schedule.rate(images_seen) if self.schedule else self.rate
        if self.kind == "constant":
            return mean
        share = mean / self.max_rate
        return self.max_rate * random.beta(BETA_TOTAL * share, BETA_TOTAL * (1 - share))

    def least_rate(self, length: float) -> float:
        """The smallest share that an image of this length may lose; see `draw_rate`."""
        if self.kind == "constant":
            return self._means()[0]
        if self.kind == "beta":
            return 0.0
        return self.short_rate + (self.long_rate - self.short_rate) * length - 2 * self.deviation

    def _means(self) -> tuple[float, float]:
        """The lowest and the highest that `rate` ever is."""
        return (self.schedule.min_rate, self.schedule.max_rate) if self.schedule else (self.rate, self.rate)


_USED_BY = {
    "rate": ("constant", "beta"),
    "schedule": ("constant", "beta"),
    "max_rate": ("beta",),
    "short_rate": ("by_length",),
    "long_rate": ("by_length",),
    "deviation": ("by_length",),
}
"""The kinds that have a setting; in others it stays at its default, where it would do nothing."""


def num_kept(num_patches: int, rate: float) -> int:
    """How many patches of an image stay."""
    return max(1, round(num_patches * (1 - rate)))


def draw_kept(num_patches: int, rate: float, random: Random) -> Int64[np.ndarray, " kept"]:
    """Which patches stay: ascending numbers below `num_patches`."""
    kept = num_kept(num_patches, rate)
    if kept == num_patches:
        return _every(num_patches)
    return np.sort(random.choice(num_patches, kept, replace=False))


@lru_cache(maxsize=1024)
def _every(num_patches: int) -> Int64[np.ndarray, " patches"]:
    """The numbers of all patches; there are few lengths, and many images of each."""
    numbers = np.arange(num_patches)
    numbers.setflags(write=False)
    return numbers
