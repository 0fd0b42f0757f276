"""The images and captions that all towers are given, and the sizes of the towers.

Images are noise: what a tower costs depends on sizes alone. Caption lengths are those of real captions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from navit_clip.data import DropConfig
from navit_clip.data.dropping import draw_kept

PATCH_SIZE = 16
CONTEXT_LENGTH, VOCABULARY = 64, 32000
CAPTION_LENGTHS = (7, 8, 9, 10, 11, 11, 12, 13, 13, 14, 14, 15, 16, 17, 19, 22)
"""Sixteenths of 5,000 Flickr8k captions by their tokens in CLIP's BPE, end token included; mean 13.3."""


class Size(NamedTuple):
    """A tower: the shapes of its weights, which are those of all peers."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int


SIZES = {
    "tiny": Size(64, 2, 2, 128),
    "ti16": Size(192, 12, 3, 768),
    "s16": Size(384, 12, 6, 1536),
    "b16": Size(768, 12, 12, 3072),
    "l16": Size(1024, 24, 16, 4096),
}


class Case(NamedTuple):
    """A distribution of images."""

    sides: tuple[int, int]
    """Smallest and largest side in pixels, each drawn on its own; what does not fill a patch is cut off."""
    drop: DropConfig | None = None
    """Which share of its patches an image loses."""

    @property
    def most_tokens(self) -> int:
        """Of an image that may come: the rows of padded batches whose shape stays the same."""
        return (self.sides[1] // PATCH_SIZE) ** 2


CASES = {
    "mixed": Case((64, 384)),
    "dropped": Case((64, 384), DropConfig(kind="beta", rate=0.5)),
    "near-equal": Case((208, 239)),
    "equal": Case((224, 224)),
}


class Picture(NamedTuple):
    """One image's patches."""

    pixels: np.ndarray
    """Bytes [tokens, patch_dim]."""
    position: np.ndarray
    """Row and column of every patch, int32 [tokens, 2]."""
    grid: tuple[int, int]
    """Before dropping."""

    @property
    def shown_grid(self) -> tuple[int, int]:
        """The grid that peers are told: one row of what stayed, where some was dropped.

        None of them takes a part of a grid as it is: they would drop inside, after padding, for more.
        """
        whole = self.grid[0] * self.grid[1] == len(self.pixels)
        return self.grid if whole else (1, len(self.pixels))


def draw_pictures(case: Case, number: int, seed: int) -> list[Picture]:
    """So many images of a case."""
    random = np.random.default_rng(seed)
    low, high = case.sides
    return [
        _picture(tuple(random.integers(low, high, size=2, endpoint=True) // PATCH_SIZE), case.drop, random)
        for _ in range(number)
    ]


def draw_captions(number: int, length: int | None, seed: int) -> list[list[int]]:
    """Token ids of so many captions, all of one length or, without one, as long as real ones."""
    random = np.random.default_rng(seed)
    parts = len(CAPTION_LENGTHS)
    lengths = [length or CAPTION_LENGTHS[(2 * i + 1) * parts // (2 * number)] for i in range(number)]
    return [random.integers(0, VOCABULARY, tokens).tolist() for tokens in lengths]


def _picture(grid: tuple[int, int], drop: DropConfig | None, random: np.random.Generator) -> Picture:
    position = np.indices(grid, dtype=np.int32).reshape(2, -1).T.copy()
    if drop is not None:
        rate = drop.draw_rate(random, images_seen=0, length=0.0)
        position = position[draw_kept(len(position), rate, random)]
    pixels = random.integers(0, 256, (len(position), 3 * PATCH_SIZE**2), dtype=np.uint8)
    return Picture(pixels, position, (int(grid[0]), int(grid[1])))
