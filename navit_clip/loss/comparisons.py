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
    """Some rows against some columns."""

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
    starts: list[int]
    """Pairs of all ranks before each."""
    world: World
    wants_gradient: bool
    """Of anything."""
    wants_columns: bool
    """Of the columns."""

    @property
    def travelling(self) -> list[Tensor]:
        """What other ranks have to see."""
        return [self.columns, self.identity] if self.same_caption else [self.columns]

    def tiles(
        self,
        first: int,
        columns: Float[Tensor, "columns dim"],
        identity: Int64[Tensor, " columns"] | None = None,
    ) -> Iterator[Tile]:
        """This rank's rows against what has travelled, by tiles: no larger part of the matrix ever exists.

        Args:
            first: the rank whose first column is the first of these.
            columns: of one rank or several.
            identity: theirs, if `same_caption`.
        """
        side = TILE[self.rows.device.type]
        shift = self.starts[self.world.rank] - self.starts[first]
        for start in range(0, len(self.rows), side):
            row = range(start, min(start + side, len(self.rows)))
            for start_column in range(0, len(columns), side):
                column = range(start_column, min(start_column + side, len(columns)))
                positive = self._positive(row, column, shift, identity)
                yield Tile(slice(row.start, row.stop), slice(column.start, column.stop), positive)

    def _positive(
        self, row: range, column: range, shift: int, identity: Tensor | None
    ) -> Bool[Tensor, "rows columns"] | None:
        """Where a row and a column are a pair: the column is `shift` places further on, or both are equal."""
        if identity is not None:
            return self.identity[row.start : row.stop, None] == identity[column.start : column.stop]
        row = range(row.start + shift, row.stop + shift)
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
