"""Where a patch is along rows and along columns, in one of NaViT's three measures (§2.1 of the paper).

    absolute            its index
    fractional          its centre as a share of the image's own side: rows by rows, columns by columns
    fractional_longer   its centre as a share of the longer side, which keeps the image's shape

Entry i of n equal parts has its centre at (i + 1/2) / n, as resizing has it; NaViT writes i / n. All patches
of a pack at once, with no host sync.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int32, Int64
from torch import Tensor

from navit_clip.batch import PackedImages

Coordinates = Literal["absolute", "fractional", "fractional_longer"]


def sides(
    images: PackedImages, image_index: Int64[Tensor, " tokens"], coordinates: Coordinates
) -> Int32[Tensor, "tokens 2"]:
    """What a patch's row and column are shares of, in patches.

    Args:
        images: a pack.
        image_index: the image of each patch.
        coordinates: one of the fractional ones.
    """
    grid = images.grid
    if coordinates == "fractional_longer":
        grid = grid.amax(dim=1, keepdim=True).expand(-1, 2)
    return grid[image_index]


def locate(
    images: PackedImages, image_index: Int64[Tensor, " tokens"], coordinates: Coordinates, table_side: int
) -> Float[Tensor, "tokens 2"]:
    """Every patch's row and column as real numbers.

    Fractions are counted in table entries, so that in an image of `table_side` patches a side they are the
    indices: -1/2 is the side's beginning and table_side - 1/2 its end.
    """
    position = images.position.float()
    if coordinates == "absolute":
        return position
    return (position + 0.5) * table_side / sides(images, image_index, coordinates) - 0.5
