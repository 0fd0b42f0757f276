"""What both losses compare: rows that stay on their rank, columns that travel, and which belong together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from navit_clip.distributed import World

TILE = {"cpu": 1024, "cuda": 4096}
"""Rows and columns of a tile: on a CPU it stays in a core's cache, a GPU wants more to do at once."""


class Tile(NamedTuple):
    """Some rows against some columns of one rank."""

    rows: slice
    columns: slice
    positive: Bool[Tensor, "rows columns"] | None
    """Which of them belong together; None where none do."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Every row of this rank against every column of all ranks."""

    rows: Float[Tensor, "pairs dim"]
    columns: Float[Tensor, "pairs dim"]
    """This rank's; others come by."""
    identity: Int64[Tensor, " pairs"]
    """Equal numbers belong together, if `same_caption`; else row i and column i do, and no others."""
    same_caption: bool
    logit_scale: Float[Tensor, "1"]
    logit_bias: Float[Tensor, "1"]
    counts: list[int]
    """Pairs of every rank."""
    world: World
    wants_gradient: bool
    """Of anything."""
    wants_columns: bool
    """Of the columns."""

    def tiles(self, first: int, column_identity: Int64[Tensor, " columns"]) -> Iterator[Tile]:
        """This rank's rows against columns, of which the first is a rank's first, by tiles.

        No larger part of the matrix ever exists.
        """
        side = TILE[self.rows.device.type]
        shift = sum(self.counts[: self.world.rank]) - sum(self.counts[:first])
        for row in range(0, len(self.rows), side):
            for column in range(0, len(column_identity), side):
                rows, columns = slice(row, row + side), slice(column, column + side)
                yield Tile(rows, columns, self._positive(rows, columns, column_identity, shift))

    def _positive(
        self, rows: slice, columns: slice, column_identity: Tensor, shift: int
    ) -> Bool[Tensor, "rows columns"] | None:
        """Where row i and column i + shift are a pair."""
        if self.same_caption:
            return self.identity[rows, None] == column_identity[columns]
        row = range(rows.start + shift, min(rows.stop, len(self.rows)) + shift)
        column = range(columns.start, min(columns.stop, len(column_identity)))
        if row.stop <= column.start or column.stop <= row.start:
            return None
        own, theirs = (torch.arange(part.start, part.stop, device=self.rows.device) for part in (row, column))
        return own[:, None] == theirs


class Sums(NamedTuple):
    """A loss and its gradients, summed over this rank's rows and all columns; columns' over all ranks."""

    loss: Float[Tensor, ""]
    rows: Float[Tensor, "pairs dim"]
    columns: Float[Tensor, "pairs dim"] | None
    logit_scale: Float[Tensor, ""]
    logit_bias: Float[Tensor, ""]


class Accumulator:
    """Gradients of logits, tile by tile -> gradients of rows, columns, scale and bias.

    With L = t * x . y + b and g = dLoss/dL, all of them follow from sums of g * y and g * x: the scale's,
    too, since the sum of g * x . y over all comparisons is that of x . (sum of g * y) over rows.
    """

    def __init__(self, comparisons: Comparisons):
        self._comparisons = comparisons
        self._rows = torch.zeros_like(comparisons.rows)
        self._bias = torch.zeros((), dtype=torch.float64, device=comparisons.rows.device)
        self.loss = torch.zeros_like(self._bias)

    def add(self, tile: Tile, columns: Tensor, gradient: Tensor, made: Tensor | None) -> None:
        """Takes a tile's g in; `made` collects what becomes of the columns."""
        self._bias += gradient.sum()
        self._rows[tile.rows].addmm_(gradient, columns[tile.columns])
        if made is not None:
            made[tile.columns].addmm_(gradient.T, self._comparisons.rows[tile.rows])

    def sums(self, columns: Tensor | None) -> Sums:
        """What came together; `columns` is what came home."""
        scale, side = self._comparisons.logit_scale, TILE[self._rows.device.type]
        of_scale = torch.zeros_like(self.loss)
        for made, rows in zip(self._rows.split(side), self._comparisons.rows.split(side), strict=True):
            of_scale += (made * rows).sum()
        return Sums(
            loss=self.loss,
            rows=self._rows.mul_(scale),
            columns=None if columns is None else columns.mul_(scale),
            logit_scale=of_scale,
            logit_bias=self._bias,
        )
