"""The part of a picture that is judged: a border cut off, then the middle kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from navit_clip.data.images import decode_image
from navit_clip.errors import ConfigError, SampleError


@dataclass(frozen=True, kw_only=True)
class View:
    """What of a picture a model is shown."""

    border: int = 0
    """Pixels cut off on each side first; ObjectNet's images have a red border that must go."""
    center: float = 1.0
    """Share of height and width kept around the middle; 0.75 is NaViT's "crop" of ObjectNet, ImageNet-A."""

    def __post_init__(self):
        if self.border < 0:
            raise ConfigError(f"border: expected at least 0 pixels, found {self.border}")
        if not 0 < self.center <= 1:
            raise ConfigError(f"center: expected a share above 0 and up to 1, found {self.center}")

    def open(self, data: bytes) -> UInt8[np.ndarray, "height width 3"]:
        """Decodes a picture at its full size and cuts it.

        Raises:
            SampleError: it cannot be decoded, or nothing is left inside its border.
        """
        pixels = decode_image(data)
        height, width, _ = pixels.shape
        if min(height, width) <= 2 * self.border:
            raise SampleError("too few pixels", f"{width} x {height} is no more than the border")
        pixels = pixels[self.border : height - self.border, self.border : width - self.border]
        height, width, _ = pixels.shape
        rows, columns = max(1, round(self.center * height)), max(1, round(self.center * width))
        top, left = (height - rows) // 2, (width - columns) // 2
        return np.ascontiguousarray(pixels[top : top + rows, left : left + columns])
