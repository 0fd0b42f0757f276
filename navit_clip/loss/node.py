"""The ranks of a node share rows over the links that join them, and gather what they made of these.

Both are one exchange of all with all, for any numbers of rows: hosts have one to start, however many ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

from navit_clip.distributed import World

Combine = Callable[[Tensor, Tensor], Tensor]


class Node:
    """This rank among those of its node."""

    def __init__(self, world: World):
        self._group = world.node
        self._size = world.ranks_per_node
        self._place = world.rank % world.ranks_per_node

    def share(self, rows: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """What all ranks of the node have, one after the other, on each of them.

        Args:
            rows: tensors with as many rows as this rank has.
            counts: rows of each rank of the node.
        """
        if self._size == 1:
            return list(rows)
        own = [counts[self._place]] * self._size
        return [self._exchange(torch.cat([part] * self._size), own, counts) for part in rows]

    def give_back(self, made: Sequence[Tensor], counts: Sequence[int], combine: Combine) -> list[Tensor]:
        """What all ranks of the node made of what this one shared, combined.

        Args:
            made: tensors with a row for each that was shared.
            counts: as they were shared.
            combine: joins what two ranks made.
        """
        if self._size == 1:
            return list(made)
        own = [counts[self._place]] * self._size
        gathered = [self._exchange(part, counts, own) for part in made]
        return [reduce(combine, part.unflatten(0, (self._size, own[0])).unbind()) for part in gathered]

    def _exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Some rows to each rank of the node, one after the other, for some from each."""
        arriving = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(arriving, rows, list(received), list(sent), group=self._group)
        return arriving
