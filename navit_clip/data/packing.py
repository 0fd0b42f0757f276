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
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Item = TypeVar("Item")

STAND_BACK = 4
"""Most of the fitting items that stand back for exact filling."""
ENOUGH = 0.5
"""Share of its tokens that the item which is cut short should keep."""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item]):
    item: Item
    length: int
    text_length: int
    arrival: int


@dataclass(frozen=True, slots=True)
class Cut(Generic[Item]):
    """What shares a batch, the longest first, ties by arrival.

    Equal lengths side by side are what attention on a CPU wants, and a stable order is what tests want.
    """

    items: list[Item]
    lengths: list[int]
    """Tokens of each; where filling is exact, one of them may have fewer than it came with."""


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
        self._fitting: list[_Waiting[Item]] = []
        self._behind: list[_Waiting[Item]] = []
        self._tokens_fitting = self._text_tokens_fitting = 0
        self._num_arrived = 0

    @property
    def waiting(self) -> list[Item]:
        """Items in no batch yet, in the order of arrival; adding them to a new packer restores this one."""
        return [entry.item for entry in [*self._fitting, *self._behind]]

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
        self._line_up(_Waiting(item, length, text_length, self._num_arrived))
        self._num_arrived += 1

    def cut(self) -> Cut[Item]:
        """Takes the next batch, ready or not, from the items waiting, of which there is at least one."""
        assert self._fitting
        chosen = sorted(self._choice(), key=lambda entry: (-entry.length, entry.arrival))
        taken = {entry.arrival for entry in chosen}
        left = [entry for entry in [*self._fitting, *self._behind] if entry.arrival not in taken]
        self._fitting, self._behind = [], []
        self._tokens_fitting = self._text_tokens_fitting = 0
        for entry in left:
            self._line_up(entry)
        return Cut([entry.item for entry in chosen], [entry.length for entry in chosen])

    def _line_up(self, entry: _Waiting[Item]) -> None:
        """Among those that fit, as long as none before it did not."""
        tokens = self._tokens_fitting + entry.length
        text_tokens = self._text_tokens_fitting + entry.text_length
        if (
            self._behind
            or tokens > self._budget
            or text_tokens > self._max_text_tokens
            or len(self._fitting) >= self._max_items
        ):
            self._behind.append(entry)
        else:
            self._fitting.append(entry)
            self._tokens_fitting = tokens
            self._text_tokens_fitting = text_tokens

    def _choice(self) -> list[_Waiting[Item]]:
        """Those that fit and what fills their gap; where filling is exact, some stand back first."""
        if not self._exact or not self._behind or len(self._fitting) == 1:
            return [*self._fitting, *self._filling(self._fitting, self._behind)[0]]
        best, most_kept = self._fitting, -1.0
        for number in range(1, min(STAND_BACK, len(self._fitting) - 1) + 1):
            first, back = self._fitting[:-number], self._fitting[-number:]
            filling, kept = self._filling(first, [*back, *self._behind])
            if kept > most_kept:
                best, most_kept = [*first, *filling], kept
            if kept >= ENOUGH:
                break
        return best

    def _filling(
        self, first: list[_Waiting[Item]], behind: list[_Waiting[Item]]
    ) -> tuple[list[_Waiting[Item]], float]:
        """What of those behind joins the first, and the share that the one which is cut short keeps."""
        back = self._fitting[len(first) :]
        gap = self._budget - self._tokens_fitting + sum(entry.length for entry in back)
        text_gap = self._max_text_tokens - self._text_tokens_fitting
        text_gap += sum(entry.text_length for entry in back)
        room = self._max_items - len(first)
        filling: list[_Waiting[Item]] = []
        shortest_longer: _Waiting[Item] | None = None
        for entry in sorted(behind, key=lambda entry: (-entry.length, entry.arrival)):
            if not gap or len(filling) >= room:
                return filling, 1.0
            if entry.text_length > text_gap:
                continue
            if entry.length > gap:
                if shortest_longer is None or entry.length < shortest_longer.length:
                    shortest_longer = entry
                continue
            if self._exact and shortest_longer and entry.length < gap:
                break
            filling.append(entry)
            gap -= entry.length
            text_gap -= entry.text_length
        if not (self._exact and shortest_longer and gap):
            return filling, 1.0
        return [*filling, replace(shortest_longer, length=gap)], gap / shortest_longer.length
