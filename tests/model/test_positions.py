"""Position embeddings: resizing against torch's own, factorized against grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from navit_clip.errors import DataError
from navit_clip.model.positions import (
    FactorizedPositions,
    GridPositions,
    PositionConfig,
    resize_weights,
)
from navit_clip.model.segments import segment_index
from tests.packs import noise_images, pack

WIDTH = 8
RNG = np.random.default_rng(0)
GRIDS = [(1, 1), (1, 64), (64, 1), (7, 7), (11, 22), (40, 40)] + [
    (int(rows), int(columns)) for rows, columns in RNG.integers(1, 50, (50, 2))
]


def embed(positions, images):
    packed = pack(images)
    return positions(packed, segment_index(packed.offsets, packed.num_tokens))


def filled(positions):
    for parameter in positions.parameters():
        torch.nn.init.normal_(parameter)
    return positions


def torch_resize(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """torch's bilinear antialiased resize of a [side, side, width] table, row by row.

    torch's CPU kernel is wrong where the output is one column wide, so such a grid is resized lying down.
    """
    if columns == 1 < rows:
        return torch_resize(table.transpose(0, 1), 1, rows)
    resized = F.interpolate(
        table.permute(2, 0, 1)[None], size=(rows, columns), mode="bilinear", antialias=True
    )
    return resized[0].permute(1, 2, 0).flatten(0, 1)


@pytest.mark.parametrize("table_side", [1, 4, 16, 27])
def test_grid_table_equals_torch_resize(table_side):
    positions = filled(GridPositions(PositionConfig(kind="grid", table_side=table_side), WIDTH))
    found = embed(positions, noise_images(GRIDS, 1))
    table = positions.table.double().unflatten(0, (table_side, table_side))
    expected = torch.cat([torch_resize(table, *grid) for grid in GRIDS])
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


def test_a_fractional_sum_is_a_grid_table():
    config = PositionConfig(kind="fractional", table_side=16)
    fractional = filled(FactorizedPositions(config, WIDTH))
    grid = GridPositions(PositionConfig(kind="grid", table_side=16), WIDTH)
    grid.table.data = (fractional.row[:, None] + fractional.column[None, :]).flatten(0, 1).detach()
    images = noise_images(GRIDS, 1, keep=0.5)
    torch.testing.assert_close(embed(fractional, images), embed(grid, images), atol=1e-6, rtol=1e-6)


def test_absolute_positions_are_rows_plus_columns():
    positions = filled(FactorizedPositions(PositionConfig(kind="absolute", table_side=5), WIDTH))
    found = embed(positions, noise_images([(2, 5)], 1))
    expected = [positions.row[row] + positions.column[column] for row in range(2) for column in range(5)]
    assert torch.equal(found, torch.stack(expected))


def test_absolute_positions_refuse_a_longer_side():
    positions = FactorizedPositions(PositionConfig(kind="absolute", table_side=5), WIDTH)
    with pytest.raises(DataError, match="reach 5 patches a side, found an image of 6"):
        embed(positions, noise_images([(6, 1)], 1))


@pytest.mark.parametrize("size", [1, 3, 16, 40])
def test_resize_weights_of_every_output_sum_to_one(size):
    weights = resize_weights(torch.arange(size, dtype=torch.int32), torch.full((size,), size).int(), 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(size))
    assert (weights >= 0).all()
