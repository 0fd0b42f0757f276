"""The ranks of a node share rows over the links that join them, and gather what they made of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from navit_clip.distributed import World
from navit_clip.loss.exchange import Exchange

Combine = Callable[[Tensor, Tensor], Tensor]


class Node:
    """This rank among those of its node."""

    def __init__(self, world: World):
        self._rank = world.rank
        self._place = world.rank % world.ranks_per_node
        self._ranks = [world.rank - self._place + place for place in range(world.ranks_per_node)]

    def share(self, rows: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """What all ranks of the node have, one after the other, on each of them.

        Args:
            rows: tensors with as many rows as this rank has.
            counts: rows of each rank of the node.
        """
        exchange = Exchange()
        of_all = [
            rows if rank == self._rank else exchange.pass_on(rows, rank, rank, count)
            for rank, count in zip(self._ranks, counts, strict=True)
        ]
        exchange.start()
        exchange.wait()
        return [torch.cat(parts) for parts in zip(*of_all, strict=True)]

    def give_back(self, made: Sequence[Tensor], counts: Sequence[int], combine: Combine) -> list[Tensor]:
        """What all ranks of the node made of what this one shared, combined.

        Args:
            made: tensors with a row for each that was shared.
            counts: as they were shared.
            combine: joins what two ranks made.
        """
        exchange = Exchange()
        split = [tensor.split(list(counts)) for tensor in made]
        of_own = []
        for rank, *parts in zip(self._ranks, *split, strict=True):
            of_own.append(
                parts if rank == self._rank else exchange.pass_on(parts, rank, rank, counts[self._place])
            )
        exchange.start()
        exchange.wait()
        return [reduce(combine, parts) for parts in zip(*of_own, strict=True)]
