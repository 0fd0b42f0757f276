"""Waiting lines: each batch is packed from one of them, and in none does an item wait without end.

Usually there is one line. NaFlex's batches have images of one number of patches alone (arXiv 2502.14786), so
each number has a line, and what comes seldom waits while other lines fill batch after batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
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
    line: int
    """Whose they are."""
    arrivals: list[int] = field(compare=False)
    """Of each, its number in the order of arrival in its line."""


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
        """Takes the next batch, if it is time for one."""
        chosen = self.choose()
        if chosen is not None:
            self.remove(chosen)
        return chosen

    def choose(self) -> LineBatch[Item] | None:
        """The same, but what is chosen waits on."""
        line = self._overdue()
        if line is None:
            line = next((line for line, packer in self._packers.items() if packer.ready), None)
        if line is None:
            return None
        cut = self._packers[line].choose()
        return LineBatch(
            items=[item for item, _ in cut.items],
            lengths=cut.lengths,
            longest_wait=self._num_batches - min(since for _, since in cut.items),
            line=line,
            arrivals=cut.arrivals,
        )

    def remove(self, batch: LineBatch[Item]) -> None:
        """Lets a batch go that was chosen last."""
        self._packers[batch.line].remove(batch.arrivals)
        self._num_batches += 1

    def remove_items(self, batch: LineBatch[Item], numbers: Iterable[int]) -> None:
        """Lets some items of that batch go, by their numbers in it: then it is as if they had never come."""
        self._packers[batch.line].remove(batch.arrivals[number] for number in numbers)

    def _overdue(self) -> int | None:
        """Where an item has lost patience: the line of the one that came first."""
        if self._patience == math.inf:
            return None
        oldest = [(packer.oldest[1], line) for line, packer in self._packers.items() if packer.oldest]
        if not oldest:
            return None
        since, line = min(oldest)
        return line if self._num_batches - since >= self._patience else None
