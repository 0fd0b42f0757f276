"""The order of samples: a pure function of seed and epoch, dealt to any number of workers.

Each shard is cut into blocks of consecutive samples, by fractions, so that blocks can be dealt before any
shard has been opened. Every epoch permutes the blocks; the epochs' permutations, one after the other, form
one endless sequence, whose position p goes to global worker p mod (number of workers). So each block is
dealt exactly once an epoch (or as often as its source's weight says), and no worker ever runs out: with fewer
blocks than workers, some simply walk in a later epoch than others.

A worker keeps a window of blocks open, all of one epoch, and takes each next sample from a random one of
them, weighted by what they have left; inside, a block is permuted too. The shuffle radius is therefore the
window's blocks. All turns until a block runs out are drawn at once. The state is small: the position in the
sequence, and the open blocks with their cursors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Int64

from navit_clip.data.draws import seed_of
from navit_clip.errors import CheckpointError


class Place(NamedTuple):
    """Where a sample is, and when it is seen."""

    visit: int
    """How often it was seen before: where all weights are 1, the epoch."""
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
    """[position, cursor when the window was filled, cursor, samples] of the window's blocks."""
    closed: float
    """Blocks done with; a dealing again shares them evenly."""


class BlockOrder:
    """The endless sequence of blocks.

    Of a shard of weight w, an epoch has each block w times, in the mean over epochs: a fraction is a share of
    its blocks, other ones in each epoch, so that none is ever more than one ahead of another. The n-th time
    that a block comes is its n-th visit, on which other things are drawn for its samples; where all weights
    are 1, visits are epochs.

    Args:
        num_shards: in the data set.
        blocks_per_shard: pieces that each is cut into.
        seed: of the order.
        weights: of each shard; without any, all are 1.
        resampled: whether each block is drawn anew from all, by the weights, instead of in its turn; then
            every place in the sequence is a visit of its own.
    """

    def __init__(
        self,
        *,
        num_shards: int,
        blocks_per_shard: int,
        seed: int,
        weights: Sequence[float] = (),
        resampled: bool = False,
    ):
        self.blocks_per_shard = blocks_per_shard
        self.seed = seed
        self._weights = np.repeat(weights or [1.0] * num_shards, blocks_per_shard)
        self._resampled = resampled
        # Where in its cycle each block starts: spread evenly, and at random, so that epochs are equally long.
        starts = np.random.default_rng(seed_of("starts", seed)).permutation(len(self._weights))
        self._starts = starts / len(starts)
        self._first_position = lru_cache(maxsize=16)(self._count_before)
        self._visits = lru_cache(maxsize=3)(self._visits_of)

    @property
    def blocks_per_epoch(self) -> float:
        """Blocks in an epoch, in the mean."""
        return float(self._weights.sum())

    def epoch(self, position: int) -> int:
        """The epoch that a position of the sequence belongs to."""
        epoch = int(position / self.blocks_per_epoch)
        while self._first_position(epoch) > position:
            epoch -= 1
        while self._first_position(epoch + 1) <= position:
            epoch += 1
        return epoch

    def visit(self, position: int) -> int:
        """How often the block at a position has come before."""
        return position if self._resampled else self._at(position)[1]

    def shard(self, position: int) -> int:
        """The number of the shard that the block at a position lies in."""
        return self._at(position)[0] // self.blocks_per_shard

    def samples(self, position: int, shard_size: int) -> Int64[np.ndarray, " samples"]:
        """Numbers within the shard of the block's samples, shuffled; none where the shard is too small."""
        part = self._at(position)[0] % self.blocks_per_shard
        start = shard_size * part // self.blocks_per_shard
        end = shard_size * (part + 1) // self.blocks_per_shard
        random = np.random.default_rng(seed_of("block", self.seed, position))
        return start + random.permutation(end - start)

    def _at(self, position: int) -> tuple[int, int]:
        """The block at a position, and its visit."""
        epoch = self.epoch(position)
        blocks, visits = self._visits(epoch)
        number = position - self._first_position(epoch)
        return int(blocks[number]), int(visits[number])

    def _count_before(self, epoch: int) -> int:
        """Blocks of all epochs before one."""
        return int(self._visits_before(epoch).sum())

    def _visits_before(self, epoch: int) -> np.ndarray:
        return np.floor(epoch * self._weights + self._starts).astype(np.int64)

    def _visits_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of an epoch in their order, and the visit that each is."""
        before = self._visits_before(epoch)
        counts = self._visits_before(epoch + 1) - before
        random = np.random.default_rng(seed_of("epoch", self.seed, epoch))
        if self._resampled:
            blocks = random.choice(len(counts), counts.sum(), p=self._weights / self._weights.sum())
            return blocks, np.zeros_like(blocks)
        blocks = np.repeat(np.arange(len(counts)), counts)
        nth = np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = random.permutation(len(blocks))
        return blocks[order], (before[blocks] + nth)[order]


@dataclass(slots=True)
class _OpenBlock:
    position: int
    epoch: int
    visit: int
    shard: int
    samples: Int64[np.ndarray, " samples"]
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
        prepare: called with each shard of which a block is opened next.
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
        prepare: Callable[[int], None],
        state: WalkState,
    ):
        self._order = order
        self._stride = stride
        self._window = window
        self._shard_size = shard_size
        self._prepare = prepare
        self._next = state["next"]
        self._backlog = deque((position, cursor) for position, cursor in state["backlog"])
        self._closed = state["closed"]
        self._open = [self._opened(position, begun) for position, begun, _, _ in state["open"]]
        for block, (_, _, _, size) in zip(self._open, state["open"], strict=True):
            if len(block.samples) != size:
                raise CheckpointError(
                    f"shard number {block.shard} has changed: a block of it that had {size} samples when the "
                    f"checkpoint was written has {len(block.samples)}"
                )
        self._plan()
        self._taken = sum(cursor - begun for _, begun, cursor, _ in state["open"])

    def __iter__(self) -> Walk:
        return self

    def __next__(self) -> Place:
        place = self.ahead(1)[0]
        self.go_on()
        return place

    def go_on(self) -> None:
        """Takes the first of the places ahead."""
        self._taken += 1

    def ahead(self, number: int) -> list[Place]:
        """The next places, one to `number` of them, which are yet to be taken."""
        while self._taken == len(self._turns):
            self._let_go()
            self._fill_window()
            self._plan()
        part = slice(self._taken, self._taken + number)
        blocks = [self._open[turn] for turn in self._turns[part].tolist()]
        return [
            Place(block.visit, block.position, block.shard, entry)
            for block, entry in zip(blocks, self._entries[part].tolist(), strict=True)
        ]

    def state(self) -> WalkState:
        """Where the walk is after what was taken."""
        blocks = zip(self._open, self._num_taken(), strict=True)
        return {
            "next": self._next,
            "backlog": [list(block) for block in self._backlog],
            "open": [
                [block.position, block.cursor, block.cursor + taken, len(block.samples)]
                for block, taken in blocks
            ],
            "closed": self._closed,
        }

    def _plan(self) -> None:
        """Draws which blocks of the window have the next turns, and what they give, until one runs out.

        Each sample that is left is as likely to be next; everything the draw depends on is in the state.
        """
        left = [block.num_left for block in self._open]
        turns = np.repeat(np.arange(len(left)), left)
        if self._open:
            words = ("window", self._order.seed, self._open[0].position, self._next, len(turns))
            np.random.default_rng(seed_of(*words)).shuffle(turns)
            last_turns = [np.flatnonzero(turns == number)[-1] for number in range(len(left))]
            turns = turns[: min(last_turns) + 1]
        self._turns = turns
        self._entries = np.empty_like(turns)
        for number, block in enumerate(self._open):
            own = turns == number
            self._entries[own] = block.samples[block.cursor :][: own.sum()]
        self._taken = 0

    def _num_taken(self) -> list[int]:
        """Of each block of the window, since the plan was made."""
        return np.bincount(self._turns[: self._taken], minlength=len(self._open)).tolist()

    def _let_go(self) -> None:
        """Closes the blocks of which nothing is left."""
        for block, taken in zip(self._open, self._num_taken(), strict=True):
            block.cursor += taken
        num_open = len(self._open)
        self._open = [block for block in self._open if block.num_left]
        self._closed += num_open - len(self._open)

    def _fill_window(self) -> None:
        """Opens blocks in order, but none of the next epoch before this one's are done."""
        while len(self._open) < self._window:
            position, cursor = self._upcoming()
            if self._open and self._order.epoch(position) != self._open[0].epoch:
                return
            if self._backlog:
                self._backlog.popleft()
            else:
                self._next += self._stride
            self._prepare(self._order.shard(self._upcoming()[0]))
            block = self._opened(position, cursor)
            if block.num_left:
                self._open.append(block)
            else:
                self._closed += 1

    def _upcoming(self) -> tuple[int, int]:
        """Position and cursor of the block that is opened next."""
        return self._backlog[0] if self._backlog else (self._next, 0)

    def _opened(self, position: int, cursor: int) -> _OpenBlock:
        shard = self._order.shard(position)
        samples = self._order.samples(position, self._shard_size(shard))
        order = self._order
        return _OpenBlock(position, order.epoch(position), order.visit(position), shard, samples, cursor)


def first_walk(worker: int) -> WalkState:
    """Where a global worker starts."""
    return {"next": worker, "backlog": [], "open": [], "closed": 0.0}


def blocks_done(state: WalkState) -> float:
    """How many blocks a walk has done, open ones by the share of their samples."""
    return state["closed"] + sum(cursor / size for _, _, cursor, size in state["open"])
