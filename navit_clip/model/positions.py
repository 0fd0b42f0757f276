"""Position embeddings of patches on grids of any shape, for a whole pack at once.

    absolute     R[row] + C[column]: NaViT's factorized learned embedding on patch indices.
    fractional   the same tables, read at row / rows and column / columns of the image (NaViT's
                 r = p / side): each table is resized to the image's side and then indexed.
    grid         one learned table over a square grid, resized to each image's grid: SigLIP 2's.

Resizing is bilinear with antialiasing, which is linear and separable. So a token's embedding is
(row weights ⊗ column weights) @ table, and a pack takes one matrix product: no loop over images, no
host sync. For the same reason a fractional pair of tables *is* a grid table, R[i] + C[j].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn

from navit_clip.batch import PackedImages
from navit_clip.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """How patches know where they are."""

    kind: Literal["absolute", "fractional", "grid"] = "fractional"
    """absolute and fractional: NaViT's factorized tables; grid: SigLIP 2's resized square table."""
    table_side: int = 16
    """Entries per axis of the learned tables. For absolute positions, the longest side in patches."""

    def __post_init__(self):
        if self.table_side < 1:
            raise ConfigError(f"table_side: expected at least 1, found {self.table_side}")


class FactorizedPositions(nn.Module):
    """One learned table for rows and one for columns, summed (NaViT §2.1, "factorized (+)")."""

    def __init__(self, config: PositionConfig, width: int):
        super().__init__()
        self.fractional = config.kind == "fractional"
        self.table_side = config.table_side
        self.row = nn.Parameter(torch.empty(config.table_side, width))
        self.column = nn.Parameter(torch.empty(config.table_side, width))

    def forward(
        self, images: PackedImages, image_index: Int64[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens dim"]:
        if not self.fractional:
            self._check_sides(images)
            row, column = images.position.unbind(dim=1)
            return self.row[row] + self.column[column]
        weights = axis_weights(images, image_index, self.table_side)
        return weights.flatten(1).to(self.row.dtype) @ torch.cat([self.row, self.column])

    def _check_sides(self, images: PackedImages) -> None:
        if images.max_side > self.table_side:
            raise DataError(
                f"image.position.table_side: absolute positions reach {self.table_side} patches a side, "
                f"found an image of {images.max_side}; raise table_side, lower the resolution, "
                "or use fractional positions"
            )


class GridPositions(nn.Module):
    """One learned square table, resized to each image's grid (SigLIP 2 NaFlex)."""

    def __init__(self, config: PositionConfig, width: int):
        super().__init__()
        self.table_side = config.table_side
        self.table = nn.Parameter(torch.empty(config.table_side**2, width))

    def forward(
        self, images: PackedImages, image_index: Int64[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens dim"]:
        row, column = axis_weights(images, image_index, self.table_side).unbind(dim=1)
        outer = row[:, :, None] * column[:, None, :]
        return outer.flatten(1).to(self.table.dtype) @ self.table


def make_positions(config: PositionConfig, width: int) -> FactorizedPositions | GridPositions:
    """The position embedding that a config describes."""
    return GridPositions(config, width) if config.kind == "grid" else FactorizedPositions(config, width)


def axis_weights(
    images: PackedImages, image_index: Int64[Tensor, " tokens"], table_side: int
) -> Float[Tensor, "tokens 2 table_side"]:
    """Resize weights of every token along rows and along columns."""
    return resize_weights(images.position, images.grid[image_index], table_side)


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
