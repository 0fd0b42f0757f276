"""Batches keep to the budget, are well filled, and starve nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navit_clip.data.packing import Packer


def pack(lengths, budget, lookahead):
    """All batches of items 0, 1, 2, ..., each cut as soon as it is ready, and then the rest."""
    packer = Packer(budget, lookahead)
    for item, length in enumerate(lengths):
        packer.add(item, length)
        while packer.ready:
            yield packer.cut()
    while packer.waiting:
        yield packer.cut()


@pytest.mark.parametrize(
    ("lengths", "budget", "lookahead", "batches"),
    [
        ([4, 4, 4, 4], 8, 1, [[0, 1], [2, 3]]),
        ([5, 5, 3], 8, 2, [[0, 2], [1]]),  # the gap of 3 is filled from behind
        ([5, 5, 1, 2, 3], 8, 4, [[0, 4], [1, 3, 2]]),  # by the longest that fits
        ([5, 5, 2, 1], 8, 3, [[0, 2, 3], [1]]),  # by more than one
        ([5, 5, 3, 3], 8, 3, [[0, 2], [1, 3]]),  # ties by arrival
        ([1, 2, 3], 8, 5, [[2, 1, 0]]),  # the longest first
        ([8, 8], 8, 3, [[0], [1]]),
    ],
)
def test_batches_by_hand(lengths, budget, lookahead, batches):
    assert list(pack(lengths, budget, lookahead)) == batches


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(50, 200), st.integers(1, 20))
def test_every_item_comes_once_within_budget_and_bound(lengths, budget, lookahead):
    packer, cut, wait = Packer(budget, lookahead), [], {}
    for item, length in enumerate(lengths):
        packer.add(item, length)
        wait[item] = len(cut)
        while packer.ready:
            oldest = packer.waiting[0]
            batch = packer.cut()
            assert oldest in batch
            assert sum(lengths[i] for i in batch) <= budget
            assert [-lengths[i] for i in batch] == sorted(-lengths[i] for i in batch)
            assert all(len(cut) - wait[i] <= lookahead for i in batch)
            cut.append(batch)
        assert len(packer.waiting) <= budget + lookahead
    seen = [item for batch in [*cut, packer.waiting] for item in batch]
    assert sorted(seen) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 20), st.integers(0, 199))
def test_what_waits_restores_the_packer(lengths, lookahead, stop):
    packer = Packer(100, lookahead)
    for item, length in enumerate(lengths[:stop]):
        packer.add(item, length)
        while packer.ready:
            packer.cut()
    restored = Packer(100, lookahead)
    for item in packer.waiting:
        restored.add(item, lengths[item])
    for item, length in enumerate(lengths[stop:], start=stop):
        packer.add(item, length)
        restored.add(item, length)
        while packer.ready:
            assert restored.cut() == packer.cut()
        assert not restored.ready
    assert restored.waiting == packer.waiting


def test_batches_of_drawn_sides_are_full():
    """Sides U(64, 256) at patches of 16: more than 99.8 % of a budget of 4096 is used."""
    random = np.random.default_rng(0)
    lengths = [max(1, round((side / 16) ** 2)) for side in random.integers(64, 257, 5000)]
    batches = list(pack(lengths, 4096, lookahead=64))[:-2]
    fill = [sum(lengths[i] for i in batch) / 4096 for batch in batches]
    assert np.mean(fill) > 0.998


def test_an_item_longer_than_the_budget_is_a_bug():
    with pytest.raises(AssertionError, match="cannot fit"):
        Packer(10, 1).add("x", 11)
