"""An image that was read, with what chance decides for it: it is decoded when it is packed.

Its number of patches is known before that, so batches are chosen among encoded images, and each is decoded
straight into its batch: pixels are written once, and what waits takes little memory.
"""

from __future__ import annotations

import math
from copy import copy
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from navit_clip.data.augmentation import View
from navit_clip.data.config import DataConfig
from navit_clip.data.draws import Random
from navit_clip.data.dropping import num_kept
from navit_clip.data.images import EncodedImage
from navit_clip.data.patches import positions_of, write_pixels
from navit_clip.errors import SampleError


class DrawnSize(NamedTuple):
    """What training draws of how an image is seen."""

    num_tokens: int
    """Patches that it is allowed."""
    view: View
    grid: tuple[int, int]
    drop_rate: float

    @property
    def num_kept(self) -> int:
        """Patches that stay."""
        return num_kept(math.prod(self.grid), self.drop_rate)


def draw_size(
    config: DataConfig,
    random: Random,
    images_seen: float,
    height: int,
    width: int,
    patch_size: int,
) -> DrawnSize:
    """Draws for an image of so many pixels.

    Args:
        config: see there.
        random: the sample's own.
        images_seen: over all ranks, when this image comes.
        height: of the whole picture, in pixels.
        width: likewise.
        patch_size: in pixels.
    """
    num_tokens = config.resolution.draw_tokens(random, images_seen, patch_size)
    view = config.augmentation.draw_view(random)
    grid = config.resolution.grid(*view.size(height, width), patch_size, num_tokens)
    by_length = config.drop.kind == "by_length"
    share = config.length_share(math.prod(grid), patch_size) if by_length else 0.0
    return DrawnSize(num_tokens, view, grid, config.drop.draw_rate(random, images_seen, share))


class DrawnImage:
    """An image that is decoded when it is packed, or before where its patches take less memory.

    Attributes:
        size: what was drawn for it.
        fault: why it could not be written, once that was tried.

    Args:
        encoded: the image.
        size: see there.
        kept: ascending row-major numbers of the patches that stay.
        patch_size: in pixels.
    """

    __slots__ = ("_held", "_kept", "_patch_size", "fault", "size")

    def __init__(
        self, encoded: EncodedImage, size: DrawnSize, kept: Int64[np.ndarray, " kept"], patch_size: int
    ):
        self.size = size
        self.fault: SampleError | None = None
        self._held: EncodedImage | UInt8[np.ndarray, "kept patch_dim"] = encoded
        self._kept = kept
        self._patch_size = patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.size.grid

    @property
    def position(self) -> Int32[np.ndarray, "kept 2"]:
        return positions_of(self.grid, self._kept)

    @property
    def patch_dim(self) -> int:
        return self._patch_size**2 * 3

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """What it holds."""
        return self._held.num_bytes if isinstance(self._held, EncodedImage) else self._held.nbytes

    def hold_less(self) -> None:
        """Decodes it now if its patches take less memory than the encoded image.

        Raises:
            SampleError: "undecodable image".
        """
        if isinstance(self._held, EncodedImage) and self.num_bytes > len(self) * self.patch_dim:
            pixels = np.empty((len(self), self.patch_dim), np.uint8)
            self._decode(self._held, pixels)
            self._held = pixels

    def hold(self, pixels: UInt8[np.ndarray, "kept patch_dim"]) -> None:
        """Keeps what was written, which is not decoded again."""
        self._held = pixels.copy()

    def write(self, pixels: UInt8[np.ndarray, "kept patch_dim"]) -> None:
        """Decodes, resizes and cuts; where the image is bad, it sets `fault` instead."""
        if isinstance(self._held, EncodedImage):
            try:
                self._decode(self._held, pixels)
            except SampleError as error:
                self.fault = error.alone()
        else:
            pixels[:] = self._held

    def thinned(self, number: int, random: np.random.Generator) -> DrawnImage:
        """The same with a random `number` of its patches, in their order."""
        some = np.sort(random.choice(len(self), number, replace=False))
        thinned = copy(self)
        thinned._kept = self._kept[some]
        if not isinstance(self._held, EncodedImage):
            thinned._held = self._held[some]
        return thinned

    def _decode(self, encoded: EncodedImage, pixels: UInt8[np.ndarray, "kept patch_dim"]) -> None:
        _, view, (rows, columns), _ = self.size
        # Of the whole picture, as many pixels as give the crop enough.
        height = math.ceil(rows * self._patch_size / view.scale)
        width = math.ceil(columns * self._patch_size / view.scale)
        picture = encoded.decode(at_least=(height, width))
        write_pixels(pixels, view.of(picture), self._patch_size, (rows, columns), self._kept)
