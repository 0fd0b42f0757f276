"""Each batch is of one line, and no line waits for others without end."""

import copy
import math

from hypothesis import given
from hypothesis import strategies as st

from navit_clip.data.lines import Lines
from navit_clip.data.packing import STAND_BACK, Packer

BUDGET = 20


def lines(lookahead: int, exact: bool = False, patience: int | float = 9) -> Lines[int]:
    return Lines(lambda: Packer(BUDGET, lookahead, exact), patience)


def test_the_line_whose_first_item_waited_too_long_is_next_full_or_not():
    waiting = lines(lookahead=1, patience=2)
    waiting.add(7, 0, length=3)
    found = []
    for item in range(1, 7):
        waiting.add(9, item, length=BUDGET)
        while batch := waiting.cut():
            found.append((batch.items, batch.longest_wait))
    assert found == [([1], 0), ([2], 1), ([0], 2), ([3], 2), ([4], 0), ([5], 1)]
    assert waiting.waiting == [(6, 1)]


def test_of_two_such_lines_the_one_that_came_first_is_next():
    waiting = lines(lookahead=3, patience=1)
    for line in (5, 4):
        waiting.add(line, line, length=3, waited=line)
    assert [batch.items for batch in (waiting.cut(), waiting.cut()) if batch] == [[5], [4]]
    assert waiting.cut() is None


def test_a_single_line_waits_until_its_batch_is_ready():
    waiting = lines(lookahead=1, patience=math.inf)
    waiting.add(0, 0, length=3)
    assert waiting.cut() is None


arrivals = st.lists(st.tuples(st.sampled_from([1, 1, 1, 1, 2, 2, 3, 4]), st.integers(1, 20)), max_size=250)


@given(arrivals, st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_every_item_comes_once_from_its_line_within_the_bound(arrivals, lookahead, patience, exact):
    waiting, num_batches, came, seen = lines(lookahead, exact, patience), 0, {}, []
    most = patience + 4 * (lookahead + 1 + (STAND_BACK if exact else 0))
    for item, (line, length) in enumerate(arrivals):
        came[item] = num_batches
        waiting.add(line, item, length)
        while batch := waiting.cut():
            assert len({arrivals[i][0] for i in batch.items}) == 1
            assert sum(batch.lengths) <= BUDGET
            waits = [num_batches - came[i] for i in batch.items]
            assert batch.longest_wait == max(waits) < most
            num_batches += 1
            seen += batch.items
        assert all(waited == num_batches - came[i] < most for i, waited in waiting.waiting)
    assert sorted([*seen, *(item for item, _ in waiting.waiting)]) == list(range(len(arrivals)))


@given(arrivals, st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_what_waits_restores_them(arrivals, lookahead, patience, exact):
    """Between any two batches, also where more than one is due."""
    waiting = lines(lookahead, exact, patience)
    for item, (line, length) in enumerate(arrivals):
        waiting.add(line, item, length)
        while batch := waiting.cut():
            assert batch.items
            restored = lines(lookahead, exact, patience)
            for left, waited in waiting.waiting:
                restored.add(arrivals[left][0], left, arrivals[left][1], waited=waited)
            assert restored.waiting == waiting.waiting
            expected = copy.deepcopy(waiting).cut()
            assert restored.cut() == expected
