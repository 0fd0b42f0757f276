"""Items of different lengths -> batches that fill a budget of tokens, never more.

A flat sequence with offsets needs no bins: a batch is any set of images whose lengths add up to at most the
budget. It takes waiting items in the order of arrival until the next would not fit, and then fills the gap
from those behind, the longest that fits first. NaViT (arXiv 2307.06304) packs first-fit into many open
sequences; here only one batch is ever open, and what it looks ahead to is bounded.

Exact filling does what NaViT suggests and did not try: the last image is cut to the gap. That is the one
behind that has to lose the fewest tokens, and the last of those that fit stands back for it, so that the gap
is about as long as an image and the loss small; and more of them, where it would still lose the most of its
tokens. Lengths that are all alike leave no choice: what does not divide the budget is cut from one of them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")

STAND_BACK = 4
"""Most of the fitting items that stand back for exact filling."""
ENOUGH = 0.5
"""Share of its tokens that the item which is cut short should keep."""


class _Size(NamedTuple):
    """Of an item that waits. In order they are the longest first, ties by arrival."""

    minus_length: int
    arrival: int
    text_length: int

    @property
    def length(self) -> int:
        return -self.minus_length


@dataclass(frozen=True, slots=True)
class Cut(Generic[Item]):
    """What shares a batch, the longest first, ties by arrival.

    Equal lengths side by side are what attention on a CPU wants, and a stable order is what tests want.
    """

    items: list[Item]
    lengths: list[int]
    """Tokens of each; where filling is exact, one of them may have fewer than it came with."""
    arrivals: list[int] = field(compare=False)
    """Of each, its number in the order of arrival, for `remove`; a restored packer counts anew."""


class Packer(Generic[Item]):
    """Chooses which items share a batch; deterministic, and starves nothing.

    A batch is ready when `lookahead` items wait beyond those that fit in the order of arrival. The oldest
    item is always in the next batch, so an item sees at most `lookahead` batches go by without it, and
    `STAND_BACK` more where filling is exact.

    Args:
        budget: most tokens in a batch.
        lookahead: how many items, beyond those that fit, a batch may choose from to fill its gap; at least 1.
        exact: fill the budget to the token by cutting one item short.
        max_items: most items in a batch; 0 for any number. Where this binds, the budget is not filled.
        max_text_tokens: most caption tokens in a batch; 0 for any number. Likewise.
    """

    def __init__(
        self, budget: int, lookahead: int, exact: bool = False, max_items: int = 0, max_text_tokens: int = 0
    ):
        assert budget >= 1
        assert lookahead >= 1
        self._budget = budget
        self._lookahead = lookahead
        self._exact = exact
        self._max_items = max_items or math.inf
        self._max_text_tokens = max_text_tokens or math.inf
        self._items: dict[int, Item] = {}  # by arrival, as are the sizes
        self._sizes: dict[int, _Size] = {}
        self._fitting: list[_Size] = []
        self._behind: list[_Size] = []  # in order of size
        self._tokens_fitting = self._text_tokens_fitting = 0
        self._num_arrived = 0

    @property
    def waiting(self) -> list[Item]:
        """Items in no batch yet, in the order of arrival; adding them to a new packer restores this one."""
        return list(self._items.values())

    @property
    def oldest(self) -> Item | None:
        """The item that waits longest, if any does."""
        return next(iter(self._items.values()), None)

    @property
    def ready(self) -> bool:
        """Whether there is enough to choose from for a batch."""
        return len(self._behind) >= self._lookahead

    def add(self, item: Item, length: int, text_length: int = 0) -> None:
        """Lets an item wait; by itself it fits a batch.

        Args:
            item: whatever `cut` is to give.
            length: its image tokens.
            text_length: its caption tokens.
        """
        assert 1 <= length <= self._budget, (
            f"an item of {length} tokens cannot fit a budget of {self._budget}"
        )
        assert text_length <= self._max_text_tokens
        size = _Size(-length, self._num_arrived, text_length)
        self._items[self._num_arrived] = item
        self._sizes[self._num_arrived] = size
        self._num_arrived += 1
        if self._behind or not self._fits(size):
            insort(self._behind, size)
        else:
            self._let_in(size)

    def cut(self) -> Cut[Item]:
        """Takes the next batch, ready or not, from the items waiting, of which there is at least one."""
        chosen = self.choose()
        self.remove(chosen.arrivals)
        return chosen

    def choose(self) -> Cut[Item]:
        """The same, but what is chosen waits on."""
        assert self._fitting
        first, filling = self._choice()
        chosen = sorted([*first, *filling])
        return Cut(
            items=[self._items[size.arrival] for size in chosen],
            lengths=[size.length for size in chosen],
            arrivals=[size.arrival for size in chosen],
        )

    def remove(self, arrivals: Iterable[int]) -> None:
        """Lets items go: from then on, it is as if they had never come."""
        for arrival in arrivals:
            del self._items[arrival]
            self._take_from_behind(self._sizes.pop(arrival))
        self._fitting, self._tokens_fitting, self._text_tokens_fitting = [], 0, 0
        for size in self._sizes.values():
            if not self._fits(size):
                break
            self._let_in(size)
            self._take_from_behind(size)

    def _fits(self, size: _Size) -> bool:
        """Beside those that fit already."""
        return (
            self._tokens_fitting + size.length <= self._budget
            and self._text_tokens_fitting + size.text_length <= self._max_text_tokens
            and len(self._fitting) < self._max_items
        )

    def _let_in(self, size: _Size) -> None:
        self._fitting.append(size)
        self._tokens_fitting += size.length
        self._text_tokens_fitting += size.text_length

    def _take_from_behind(self, size: _Size) -> None:
        """If it is there: what fits has never been, or no longer is."""
        place = bisect_left(self._behind, size)
        if place < len(self._behind) and self._behind[place] == size:
            del self._behind[place]

    def _choice(self) -> tuple[list[_Size], list[_Size]]:
        """Those that fit and what fills their gap; where filling is exact, some stand back first."""
        if not self._exact or not self._behind or len(self._fitting) == 1:
            return self._fitting, self._filling(self._fitting)[0]
        best, most_kept = (self._fitting, []), -1.0
        for number in range(1, min(STAND_BACK, len(self._fitting) - 1) + 1):
            first = self._fitting[:-number]
            filling, kept = self._filling(first)
            if kept > most_kept:
                best, most_kept = (first, filling), kept
            if kept >= ENOUGH:
                break
        return best

    def _filling(self, first: list[_Size]) -> tuple[list[_Size], float]:
        """What of those behind joins the first, and the share that the one which is cut short keeps."""
        back = self._fitting[len(first) :]
        gap = self._budget - self._tokens_fitting + sum(size.length for size in back)
        text_gap = self._max_text_tokens - self._text_tokens_fitting
        text_gap += sum(size.text_length for size in back)
        room = self._max_items - len(first)
        behind = sorted([*self._behind, *back]) if back else self._behind
        start = 0
        filling: list[_Size] = []
        while gap and len(filling) < room:
            end = bisect_left(behind, (-gap,), lo=start)  # those from start to end are longer
            place = next((i for i in range(end, len(behind)) if behind[i].text_length <= text_gap), None)
            if self._exact and (place is None or behind[place].length < gap):
                for longer in reversed(behind[start:end]):
                    if longer.text_length <= text_gap:
                        return [*filling, longer._replace(minus_length=-gap)], gap / longer.length
            if place is None:
                break
            filling.append(behind[place])
            gap -= behind[place].length
            text_gap -= behind[place].text_length
            start = place + 1
        return filling, 1.0
