"""Items of different lengths -> batches that fill a budget of tokens, never more.

A flat sequence with offsets needs no bins: a batch is any set of images whose lengths add up to at most the
budget. It takes waiting items in the order of arrival until the next would not fit, and then fills the gap
from those behind, the longest that fits first. NaViT (arXiv 2307.06304) packs first-fit into many open
sequences; here only one batch is ever open, and what it looks ahead to is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[Item]):
    length: int
    arrival: int
    item: Item


class Packer(Generic[Item]):
    """Chooses which items share a batch; deterministic, and starves nothing.

    A batch is ready when `lookahead` items wait beyond those that fit in the order of arrival. The oldest
    item is always in the next batch, so an item sees at most `lookahead` batches go by without it.

    Args:
        budget: most tokens in a batch.
        lookahead: how many items, beyond those that fit, a batch may choose from to fill its gap; at least 1.
    """

    def __init__(self, budget: int, lookahead: int):
        assert budget >= 1
        assert lookahead >= 1
        self._budget = budget
        self._lookahead = lookahead
        self._waiting: list[_Waiting[Item]] = []
        self._num_arrived = 0
        self._num_fitting = 0
        self._tokens_fitting = 0

    @property
    def waiting(self) -> list[Item]:
        """Items in no batch yet, in the order of arrival; adding them to a new packer restores this one."""
        return [entry.item for entry in self._waiting]

    @property
    def ready(self) -> bool:
        """Whether there is enough to choose from for a batch."""
        return len(self._waiting) - self._num_fitting >= self._lookahead

    def add(self, item: Item, length: int) -> None:
        """Lets an item wait; its length is at most the budget."""
        assert 1 <= length <= self._budget, (
            f"an item of {length} tokens cannot fit a budget of {self._budget}"
        )
        self._waiting.append(_Waiting(length, self._num_arrived, item))
        self._num_arrived += 1
        self._extend_fitting()

    def cut(self) -> list[Item]:
        """Takes the next batch, ready or not, from the items waiting, of which there is at least one.

        It is sorted by length, the longest first, ties by arrival: equal lengths side by side are what
        attention on a CPU wants, and a stable order is what tests want.
        """
        assert self._waiting
        chosen = self._waiting[: self._num_fitting]
        behind = self._waiting[self._num_fitting :]
        gap = self._budget - self._tokens_fitting
        while fitting := [entry for entry in behind if entry.length <= gap]:
            best = max(fitting, key=lambda entry: (entry.length, -entry.arrival))
            behind.remove(best)
            chosen.append(best)
            gap -= best.length
        self._waiting = behind
        self._num_fitting = self._tokens_fitting = 0
        self._extend_fitting()
        chosen.sort(key=lambda entry: (-entry.length, entry.arrival))
        return [entry.item for entry in chosen]

    def _extend_fitting(self) -> None:
        """Counts how many of the waiting fit in the order of arrival, up to the first that does not."""
        for entry in self._waiting[self._num_fitting :]:
            if self._tokens_fitting + entry.length > self._budget:
                return
            self._num_fitting += 1
            self._tokens_fitting += entry.length
