"""Rows of every rank come to all ranks, and what each made of them comes home with them.

They travel round a ring of nodes: each rank hands its rows to the rank in its own place on the next node,
over a network adapter of its own. The ranks of a node share what has arrived, so that each sees the rows of a
whole node at once, and give back what they made of them before that travels on.

In step s a node works on the rows of the node s places before it. Meanwhile these are already on their way to
the next node, and so is what was made of the rows before: the network overlaps with the work. A rank holds a
node's rows three times at most (as they came, what it made of them, what others made of its own) and beside
them those of four ranks. A world of one rank has no exchanges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from navit_clip.distributed import World
from navit_clip.loss.node import Combine, Node

Visit = Callable[[int, list[Tensor]], list[Tensor]]


def travel(
    rows: Sequence[Tensor], counts: Sequence[int], world: World, visit: Visit, combine: Combine = torch.add
) -> list[Tensor]:
    """Shows every rank's rows to every rank, and gathers what they make of this rank's.

    Args:
        rows: tensors with a row for each of this rank's pairs; none takes a gradient from here.
        counts: pairs of every rank; any may be zero, this rank's too.
        world: the ranks; all call this together.
        visit: called once for each node, in the order of arrival, with its first rank and the rows of all its
            ranks, one after the other; returns tensors with a row for each of them, the same shapes and
            dtypes on all ranks.
        combine: joins what two ranks made of the same rows.

    Returns:
        What all ranks made of this rank's rows, combined.
    """
    node, stride = Node(world), world.ranks_per_node
    following, previous = (world.rank + stride) % world.size, (world.rank - stride) % world.size
    here = [part.contiguous() for part in rows]
    made: list[Tensor] = []
    for step in range(num_nodes := world.size // stride):
        owner = (world.rank - step * stride) % world.size
        first = owner - owner % stride
        on_node = counts[first : first + stride]
        network = _Exchange(following, previous)
        coming: list[Tensor] = []
        if step < num_nodes - 1:
            coming = network.pass_on(here, counts[(owner - stride) % world.size])
        arrived = network.pass_on(made, counts[owner])
        network.start()
        made = node.give_back(visit(first, node.share(here, on_node)), on_node, combine)
        network.wait()
        if step:
            made = [combine(mine, theirs) for mine, theirs in zip(made, arrived, strict=True)]
        here = coming
    if num_nodes == 1:
        return made
    home = _Exchange(following, previous)
    made = home.pass_on(made, counts[world.rank])
    home.start()
    home.wait()
    return made


class _Exchange:
    """Sends to a rank and receives from another, all at once. What has no rows is not sent, nor awaited."""

    def __init__(self, following: int, previous: int):
        self._following, self._previous = following, previous
        self._operations: list[dist.P2POp] = []
        self._requests: list[dist.Work] = []

    def pass_on(self, tensors: Sequence[Tensor], num_rows_to_come: int) -> list[Tensor]:
        """Plans to send tensors; returns where as many like them, of so many rows, will arrive."""
        arriving = [tensor.new_empty(num_rows_to_come, *tensor.shape[1:]) for tensor in tensors]
        for tensor, space in zip(tensors, arriving, strict=True):
            if len(tensor):
                self._operations.append(dist.P2POp(dist.isend, tensor, self._following))
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
