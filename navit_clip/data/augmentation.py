"""Random crops and mirroring. NaViT trains without; a small data set seen many times needs them.

A crop keeps the picture's own shape, so that aspect ratios stay what they are. The text stays as it is: leave
mirroring off where captions say left and right, or where pictures show writing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from navit_clip.data.draws import Random
from navit_clip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What may happen to a picture before it is resized; by default nothing."""

    min_area: float = 1.0
    """Smallest share of the picture's area that a crop keeps; the share is drawn uniformly up to 1."""
    mirror: float = 0.0
    """Chance that left and right are exchanged."""

    def __post_init__(self):
        if not 0 < self.min_area <= 1:
            raise ConfigError(f"min_area: expected a share in (0, 1], found {self.min_area}")
        if not 0 <= self.mirror <= 1:
            raise ConfigError(f"mirror: expected a chance in [0, 1], found {self.mirror}")

    def draw_view(self, random: Random) -> View:
        """A crop and whether to mirror it; draws nothing where nothing may happen."""
        if self.min_area == 1 and self.mirror == 0:
            return WHOLE
        scale = random.uniform(self.min_area, 1) ** 0.5 if self.min_area < 1 else 1.0
        top, left = (random.random(), random.random()) if self.min_area < 1 else (0.0, 0.0)
        return View(scale, top, left, self.mirror > 0 and random.random() < self.mirror)


@dataclass(frozen=True, slots=True)
class View:
    """The part of a picture that is trained on."""

    scale: float
    """Of both sides of the crop, in (0, 1]."""
    top: float
    """Where the crop begins, as a share of the room that it leaves, in [0, 1)."""
    left: float
    mirrored: bool

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the crop of a picture, at least one pixel each."""
        return max(1, round(self.scale * height)), max(1, round(self.scale * width))

    def of(self, picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Cuts it out of a picture, at whatever scale that was decoded."""
        if self.scale == 1 and not self.mirrored:
            return picture
        height, width = self.size(*picture.shape[:2])
        top = int(self.top * (picture.shape[0] - height + 1))
        left = int(self.left * (picture.shape[1] - width + 1))
        crop = picture[top : top + height, left : left + width]
        return np.ascontiguousarray(crop[:, ::-1] if self.mirrored else crop)


WHOLE = View(scale=1.0, top=0.0, left=0.0, mirrored=False)
"""All of a picture, as it is."""
