"""The order of samples: a pure function of seed and epoch, dealt to any number of workers.

Each shard is cut into blocks of consecutive samples, by fractions, so that blocks can be dealt before any
shard has been opened. Every epoch permutes the blocks; the epochs' permutations, one after the other, form
one endless sequence, whose position p goes to global worker p mod (number of workers). So each block is
dealt exactly once an epoch, and no worker ever runs out: with fewer blocks than workers, some simply walk
in a later epoch than others.

A worker keeps a window of blocks open, all of one epoch, and takes each next sample from a random one of
them, weighted by what they have left; inside, a block is permuted too. The shuffle radius is therefore the
window's blocks. The state is small: the position in the sequence, and the open blocks with their cursors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, TypedDict

import numpy as np

from navit_clip.data.draws import seed_of
from navit_clip.errors import CheckpointError


class Place(NamedTuple):
    """Where a sample is, and when it is seen."""

    epoch: int
    position: int
    """Of its block in the sequence of all epochs' blocks."""
    shard: int
    entry: int


class WalkState(TypedDict):
    """What a worker's walk has left to do; plain JSON."""

    next: int
    """The worker's next position in the sequence of blocks."""
    backlog: list[list[int]]
    """[position, cursor] of blocks that come before the sequence goes on: left by a dealing again."""
    open: list[list[int]]
    """[position, cursor, samples] of the window's blocks."""
    closed: float
    """Blocks done with; a dealing again shares them evenly."""


@dataclass(frozen=True, kw_only=True)
class BlockOrder:
    """The endless sequence of blocks."""

    num_shards: int
    blocks_per_shard: int
    seed: int

    @property
    def num_blocks(self) -> int:
        """Blocks in an epoch."""
        return self.num_shards * self.blocks_per_shard

    def epoch(self, position: int) -> int:
        """The epoch that a position of the sequence belongs to."""
        return position // self.num_blocks

    def shard(self, position: int) -> int:
        """The number of the shard that the block at a position lies in."""
        return self._block(position) // self.blocks_per_shard

    def samples(self, position: int, shard_size: int) -> list[int]:
        """Numbers within the shard of the block's samples, shuffled; none where the shard is too small."""
        part = self._block(position) % self.blocks_per_shard
        start = shard_size * part // self.blocks_per_shard
        end = shard_size * (part + 1) // self.blocks_per_shard
        random = np.random.default_rng(seed_of("block", self.seed, position))
        return (start + random.permutation(end - start)).tolist()

    def _block(self, position: int) -> int:
        return int(_permutation(self.seed, self.epoch(position), self.num_blocks)[position % self.num_blocks])


@dataclass(slots=True)
class _OpenBlock:
    position: int
    epoch: int
    shard: int
    samples: list[int]
    cursor: int

    @property
    def num_left(self) -> int:
        return len(self.samples) - self.cursor


class Walk:
    """One worker's endless walk over the places of samples.

    Args:
        order: the sequence of blocks.
        stride: how many workers share it.
        window: how many blocks are open at once.
        shard_size: the number of samples in a shard; called when a block of it is opened. Some shard has any.
        state: where to go on.

    Raises:
        CheckpointError: a shard has another size than when the state was taken.
    """

    def __init__(
        self,
        order: BlockOrder,
        stride: int,
        window: int,
        shard_size: Callable[[int], int],
        state: WalkState,
    ):
        self._order = order
        self._stride = stride
        self._window = window
        self._shard_size = shard_size
        self._next = state["next"]
        self._backlog = [(position, cursor) for position, cursor in state["backlog"]]
        self._closed = state["closed"]
        self._open = [self._opened(position, cursor) for position, cursor, _ in state["open"]]
        for block, (_, _, size) in zip(self._open, state["open"], strict=True):
            if len(block.samples) != size:
                raise CheckpointError(
                    f"shard number {block.shard} has changed: a block of it that had {size} samples when the "
                    f"checkpoint was written has {len(block.samples)}"
                )

    def __iter__(self) -> Walk:
        return self

    def __next__(self) -> Place:
        self._fill_window()
        # A block's chance is what it has left; everything the choice depends on is in the state.
        ends = list(accumulate(block.num_left for block in self._open))
        words = ("window", self._order.seed, self._open[0].position, self._next, ends[-1])
        block = self._open[bisect_right(ends, seed_of(*words) % ends[-1])]
        place = Place(block.epoch, block.position, block.shard, block.samples[block.cursor])
        block.cursor += 1
        if not block.num_left:
            self._open.remove(block)
            self._closed += 1
        return place

    def state(self) -> WalkState:
        return {
            "next": self._next,
            "backlog": [list(block) for block in self._backlog],
            "open": [[block.position, block.cursor, len(block.samples)] for block in self._open],
            "closed": self._closed,
        }

    def _fill_window(self) -> None:
        """Opens blocks in order, but none of the next epoch before this one's are done."""
        while len(self._open) < self._window:
            position, cursor = self._backlog[0] if self._backlog else (self._next, 0)
            if self._open and self._order.epoch(position) != self._open[0].epoch:
                return
            if self._backlog:
                self._backlog.pop(0)
            else:
                self._next += self._stride
            block = self._opened(position, cursor)
            if block.num_left:
                self._open.append(block)
            else:
                self._closed += 1

    def _opened(self, position: int, cursor: int) -> _OpenBlock:
        shard = self._order.shard(position)
        samples = self._order.samples(position, self._shard_size(shard))
        return _OpenBlock(position, self._order.epoch(position), shard, samples, cursor)


def first_walk(worker: int) -> WalkState:
    """Where a global worker starts."""
    return {"next": worker, "backlog": [], "open": [], "closed": 0.0}


def blocks_done(state: WalkState) -> float:
    """How many blocks a walk has done, open ones by the share of their samples."""
    return state["closed"] + sum(cursor / size for _, cursor, size in state["open"])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_blocks: int) -> np.ndarray:
    return np.random.default_rng(seed_of("epoch", seed, epoch)).permutation(num_blocks)
