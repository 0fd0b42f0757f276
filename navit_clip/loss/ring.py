"""Rows of every rank travel round all ranks, and what each made of them comes home with them.

In step s rank r holds the rows of rank r - s. While it works on them they are already on their way to the
next rank, and so is what was made of the rows before: exchanges overlap with the work. Nothing is ever held
of more than two ranks' rows beside one's own. A world of one has no exchanges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from navit_clip.distributed import World

Visit = Callable[[int, list[Tensor]], list[Tensor]]
Combine = Callable[[Tensor, Tensor], Tensor]


def travel(
    rows: Sequence[Tensor], counts: Sequence[int], world: World, visit: Visit, combine: Combine = torch.add
) -> list[Tensor]:
    """Shows every rank's rows to every rank, and gathers what they make of this rank's.

    Args:
        rows: tensors with a row for each of this rank's pairs; none takes a gradient from here.
        counts: pairs of every rank; any may be zero, this rank's too.
        world: the ranks; all call this together.
        visit: called once for each rank, in the order of arrival, with its number and its rows; returns
            tensors with a row for each of them, the same shapes and dtypes on all ranks.
        combine: joins what two ranks made of the same rows.

    Returns:
        What all ranks made of this rank's rows, combined.
    """
    here = [part.contiguous() for part in rows]
    made: list[Tensor] = []
    for step in range(world.size):
        owner = (world.rank - step) % world.size
        exchange = _Exchange(world)
        following: list[Tensor] = []
        if step < world.size - 1:
            following = exchange.pass_on(here, counts[owner], counts[(owner - 1) % world.size])
        arrived = exchange.pass_on(made, counts[(owner + 1) % world.size], counts[owner]) if step else []
        exchange.start()
        made = visit(owner, here)
        exchange.wait()
        if step:
            made = [combine(mine, theirs) for mine, theirs in zip(made, arrived, strict=True)]
        here = following
    home = _Exchange(world)
    if world.size > 1:
        made = home.pass_on(made, counts[(world.rank + 1) % world.size], counts[world.rank])
    home.start()
    home.wait()
    return made


class _Exchange:
    """Sends to the next rank and receives from the one before, all at once."""

    def __init__(self, world: World):
        self._next = (world.rank + 1) % world.size
        self._previous = (world.rank - 1) % world.size
        self._operations: list[dist.P2POp] = []
        self._requests: list[dist.Work] = []

    def pass_on(self, tensors: Sequence[Tensor], num_rows: int, num_rows_to_come: int) -> list[Tensor]:
        """Plans to send tensors of `num_rows` rows; returns where as many others of like rows will arrive."""
        arriving = [tensor.new_empty(num_rows_to_come, *tensor.shape[1:]) for tensor in tensors]
        for tensor, space in zip(tensors, arriving, strict=True):
            if num_rows:
                self._operations.append(dist.P2POp(dist.isend, tensor, self._next))
            if num_rows_to_come:
                self._operations.append(dist.P2POp(dist.irecv, space, self._previous))
        return arriving

    def start(self) -> None:
        if self._operations:
            self._requests = dist.batch_isend_irecv(self._operations)

    def wait(self) -> None:
        for request in self._requests:
            request.wait()
        self._operations.clear()  # what was sent may go
