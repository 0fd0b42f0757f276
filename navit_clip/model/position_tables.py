"""Positions that are read from learned tables, all patches of a pack by one gather or one product.

Fractional coordinates read a table that is resized to the image: bilinear with antialiasing, as SigLIP 2 does
it. (NaViT interpolates at the fraction alone. The two agree where an image has at least as many patches a
side as the table has entries; with fewer, antialiasing averages neighbours, and so a NaViT can leave as a
SigLIP 2.) That is linear and separable, so a patch's entry is a row of weights times the table. And a sum of
a row's and a column's resized table is, for the same reason, the square table R[i] + C[j] resized.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn

from navit_clip.batch import PackedImages
from navit_clip.errors import DataError
from navit_clip.model.coordinates import Coordinates, sides

Combination = Literal["sum", "stack", "product"]


class FactorizedPositions(nn.Module):
    """A learned table for rows and one for columns, and one way to make a vector of the two (NaViT §2.1)."""

    def __init__(self, width: int, table_side: int, coordinates: Coordinates, combination: Combination):
        super().__init__()
        self.table_side = table_side
        self.coordinates: Coordinates = coordinates
        self.combination: Combination = combination
        dim = width // 2 if combination == "stack" else width
        self.row = nn.Parameter(torch.empty(table_side, dim))
        self.column = nn.Parameter(torch.empty(table_side, dim))

    def forward(
        self, images: PackedImages, image_index: Int64[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens dim"]:
        if self.coordinates == "absolute":
            check_sides(images, self.table_side)
            second = self.table_side * torch.arange(2, device=images.position.device)
            vectors = F.embedding(images.position + second, torch.cat([self.row, self.column]))
        else:
            size = sides(images, image_index, self.coordinates)
            weights = resize_weights(images.position, size, self.table_side).to(self.row.dtype)
            tables = torch.stack([self.row, self.column])
            vectors = torch.einsum("tas,asd->tad", weights, tables)
        return combine(vectors, self.combination)


class SquarePositions(nn.Module):
    """A learned vector for every (row, column) up to a side: Pix2Struct's "learned 2-D" (2210.03347)."""

    def __init__(self, width: int, table_side: int):
        super().__init__()
        self.table_side = table_side
        self.table = nn.Parameter(torch.empty(table_side**2, width))

    def forward(
        self, images: PackedImages, image_index: Int64[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens dim"]:
        check_sides(images, self.table_side)
        row, column = images.position.unbind(dim=1)
        return F.embedding(row * self.table_side + column, self.table)


class GridPositions(nn.Module):
    """A learned square table, resized to each image's grid (SigLIP 2, NaFlex).

    On a grid of the table's own size it is the table, row by row: ViT's "learned 1-D", which is trained at
    one resolution and interpolated elsewhere.
    """

    def __init__(self, width: int, table_side: int):
        super().__init__()
        self.table_side = table_side
        self.table = nn.Parameter(torch.empty(table_side**2, width))

    def forward(
        self, images: PackedImages, image_index: Int64[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens dim"]:
        size = sides(images, image_index, "fractional")
        row, column = resize_weights(images.position, size, self.table_side).unbind(dim=1)
        outer = row[:, :, None] * column[:, None, :]
        return outer.flatten(1).to(self.table.dtype) @ self.table


def combine(vectors: Float[Tensor, "tokens 2 part"], combination: Combination) -> Float[Tensor, "tokens dim"]:
    """A row's and a column's vector -> a patch's."""
    if combination == "stack":
        return vectors.flatten(1)
    row, column = vectors.unbind(dim=1)
    return row + column if combination == "sum" else row * column


def check_sides(images: PackedImages, table_side: int) -> None:
    """Raises DataError where an image is longer than a table of absolute positions."""
    if images.max_side > table_side:
        raise DataError(
            f"image.position.table_side: absolute positions reach {table_side} patches a side, "
            f"found an image of {images.max_side}; raise table_side, lower the resolution, "
            "or use fractional positions"
        )


def resize_weights(
    index: Int32[Tensor, "*axes"], size: Int32[Tensor, "*axes"], table_side: int
) -> Float[Tensor, "*axes table_side"]:
    """Row `index` of the matrix that resizes `table_side` entries to `size`, bilinear with antialiasing.

    Entry j of `table_side` = m has its centre at (j + 1/2) / m of the side, output i of `size` = n at
    (i + 1/2) / n. Their weight is a triangle of their distance, as wide as one output step when shrinking
    and as one entry when growing:

        max(0, 1 - |(2i + 1) m - (2j + 1) n| / (2 max(m, n))), normalised to sum to one over j,

    which is what `interpolate(mode="bilinear", antialias=True)` of torch computes along one axis. In whole
    numbers nothing is rounded before the last division.
    """
    size = size[..., None]
    entry = torch.arange(table_side, device=index.device, dtype=index.dtype)
    distance = ((2 * index[..., None] + 1) * table_side - (2 * entry + 1) * size).abs()
    weights = (2 * size.clamp(min=table_side) - distance).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)
