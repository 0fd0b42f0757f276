"""A picture -> its patches: resized to a grid, cut, and only the kept patches copied.

A patch is a row of patch_size * patch_size * 3 bytes in (row, column, channel) order; patches come row by
row of the grid.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor

from navit_clip.batch import Patches
from navit_clip.data.images import decode_image
from navit_clip.data.resize import grid_for, resize


def image_patches(data: bytes, patch_size: int, num_tokens: int, longest: int = 0) -> Patches:
    """An encoded image as evaluation sees it: decoded in full, nothing dropped, nothing drawn.

    Raises:
        SampleError: "undecodable image", "too many pixels" or "too many scans".
    """
    return cut_patches(decode_image(data), patch_size, num_tokens, longest)


def cut_patches(
    image: UInt8[np.ndarray, "height width 3"], patch_size: int, num_tokens: int, longest: int = 0
) -> Patches:
    """All patches of the largest grid with at most `num_tokens` (see `grid_for`)."""
    height, width, _ = image.shape
    return cut_grid(image, patch_size, grid_for(height, width, patch_size, num_tokens, longest))


def cut_grid(
    image: UInt8[np.ndarray, "height width 3"],
    patch_size: int,
    grid: tuple[int, int],
    kept: Int64[np.ndarray, " kept"] | None = None,
) -> Patches:
    """Resizes to rows x columns of patches and cuts.

    Args:
        image: the whole picture, at any size.
        patch_size: in pixels.
        grid: rows and columns.
        kept: which patches to keep, as ascending row-major numbers; without it, all.
    """
    numbers = np.arange(grid[0] * grid[1]) if kept is None else kept
    pixels = np.empty((len(numbers), patch_size * patch_size * 3), np.uint8)
    write_pixels(pixels, image, patch_size, grid, numbers)
    return Patches(pixels, positions_of(grid, numbers), grid)


def write_pixels(
    pixels: UInt8[np.ndarray, "kept patch_dim"],
    image: UInt8[np.ndarray, "height width 3"],
    patch_size: int,
    grid: tuple[int, int],
    kept: Int64[np.ndarray, " kept"],
) -> None:
    """The pixels of what `cut_grid` cuts, into memory that is there."""
    rows, columns = grid
    resized = resize(image, rows * patch_size, columns * patch_size)
    # A patch's row of pixels as one item: numpy then copies it whole.
    line = f"V{patch_size * 3}"
    patches = resized.reshape(rows, patch_size, columns, -1).view(line).squeeze(-1).swapaxes(1, 2)
    places = pixels.view(line)
    if len(kept) == rows * columns:
        places.reshape(patches.shape)[:] = patches
    else:
        places[:] = patches[np.divmod(kept, columns)]


def positions_of(grid: tuple[int, int], kept: Int64[np.ndarray, " kept"]) -> Int32[np.ndarray, "kept 2"]:
    """Row and column of each kept patch."""
    every = _positions(grid)
    return every if len(kept) == len(every) else every[kept]


@lru_cache(maxsize=1024)
def _positions(grid: tuple[int, int]) -> Int32[np.ndarray, "tokens 2"]:
    """Of every patch of a grid; there are few grids, and many images of each."""
    positions = np.indices(grid, dtype=np.int32).reshape(2, -1).T.copy()
    positions.setflags(write=False)
    return positions


def picture_of(patches: Patches, patch_size: int) -> Float[Tensor, "3 height width"]:
    """The resized picture that was cut into these, from -1 to 1; all patches have to be there."""
    rows, columns = patches.grid
    tiles = torch.from_numpy(patches.pixels).view(rows, columns, patch_size, patch_size, 3)
    picture = tiles.permute(4, 0, 2, 1, 3).reshape(3, rows * patch_size, columns * patch_size)
    return picture / 127.5 - 1
