"""Waiting lines: each batch is packed from one of them, and in none does an item wait without end.

Usually there is one line. NaFlex's batches have images of one number of patches alone (arXiv 2502.14786), so
each number has a line, and what comes seldom waits while other lines fill batch after batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from navit_clip.data.packing import Packer

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class LineBatch(Generic[Item]):
    """What shares a batch, in the order of `Cut`."""

    items: list[Item]
    lengths: list[int]
    """Tokens of each; where filling is exact, one of them may have fewer than it came with."""
    longest_wait: int
    """Batches, of all lines, that the item which waited longest let go by."""


class Lines(Generic[Item]):
    """Packers side by side; deterministic.

    A line's batch is next when its packer is ready; or when its oldest item has let `patience` batches of all
    lines go by, and then full or not. After that each line has to be emptied at most once, so an item lets
    fewer than `patience + lines * (lookahead + 1)` batches go by; where filling is exact, `STAND_BACK` more a
    line. A single line needs no patience, and should get `math.inf`: see `Packer`.

    Args:
        new_packer: makes a line's, when its first item comes.
        patience: in batches.
    """

    def __init__(self, new_packer: Callable[[], Packer[tuple[Item, int]]], patience: int | float):
        self._new_packer = new_packer
        self._patience = patience
        self._packers: dict[int, Packer[tuple[Item, int]]] = {}  # by line, in order
        self._num_batches = 0

    @property
    def waiting(self) -> list[tuple[Item, int]]:
        """Items in no batch yet, and the batches that each has let go by; adding them in this order to others
        restores these."""
        return [
            (item, self._num_batches - since)
            for packer in self._packers.values()
            for item, since in packer.waiting
        ]

    def add(self, line: int, item: Item, length: int, text_length: int = 0, waited: int = 0) -> None:
        """Lets an item wait in a line; see `Packer.add`.

        Args:
            line: its number.
            item: whatever `cut` is to give.
            length: its image tokens.
            text_length: its caption tokens.
            waited: batches that it has let go by already.
        """
        if line not in self._packers:
            self._packers[line] = self._new_packer()
            self._packers = dict(sorted(self._packers.items()))
        self._packers[line].add((item, self._num_batches - waited), length, text_length)

    def cut(self) -> LineBatch[Item] | None:
        """The next batch, if it is time for one."""
        packer = self._overdue() or next((p for p in self._packers.values() if p.ready), None)
        if packer is None:
            return None
        cut = packer.cut()
        longest_wait = self._num_batches - min(since for _, since in cut.items)
        self._num_batches += 1
        return LineBatch([item for item, _ in cut.items], cut.lengths, longest_wait)

    def _overdue(self) -> Packer[tuple[Item, int]] | None:
        """Where an item has lost patience: the line of the one that came first."""
        if self._patience == math.inf:
            return None
        oldest = [(packer.oldest[1], line) for line, packer in self._packers.items() if packer.oldest]
        if not oldest:
            return None
        since, line = min(oldest)
        return self._packers[line] if self._num_batches - since >= self._patience else None
