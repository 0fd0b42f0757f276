"""Batches keep to the budget, are well filled, and starve nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navit_clip.data.dropping import DropConfig, num_kept
from navit_clip.data.packing import STAND_BACK, Packer
from navit_clip.data.resolution import ResolutionConfig


def cuts(lengths, budget, lookahead, texts=None, **limits):
    """All batches of items 0, 1, 2, ..., each cut as soon as it is ready, and then the rest."""
    packer = Packer(budget, lookahead, **limits)
    for item, length in enumerate(lengths):
        packer.add(item, length, texts[item] if texts else 0)
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
    assert [cut.items for cut in cuts(lengths, budget, lookahead)] == batches


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([4, 4, 4, 4], [[(0, 4), (1, 4)], [(2, 4), (3, 4)]]),
        ([5, 5, 3], [[(0, 5), (2, 3)], [(1, 5)]]),  # what fits exactly loses nothing
        ([5, 5, 4], [[(0, 5), (2, 3)], [(1, 5)]]),  # the one that loses the fewest
        ([5, 2, 4, 4], [[(0, 5), (3, 3)], [(2, 4), (1, 2)]]),  # 1 stands back, else 3 would lose 3 of 4
        ([5, 1, 2, 9], [[(0, 5), (2, 2), (1, 1)], [(3, 8)]]),
        ([9, 9, 9], [[(0, 8)], [(1, 8)], [(2, 8)]]),
    ],
)
def test_exact_batches_by_hand(lengths, batches):
    found = cuts([min(length, 8) for length in lengths], 8, lookahead=2, exact=True)
    assert [list(zip(cut.items, cut.lengths, strict=True)) for cut in found] == batches


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        ({"max_items": 1}, [[0], [1], [2], [3]]),
        ({"max_items": 2}, [[0, 1], [2, 3]]),
        ({"max_text_tokens": 4}, [[0, 1], [2, 3]]),
        ({"max_text_tokens": 3}, [[0, 2], [1], [3]]),  # the gap is filled by a caption that fits
    ],
)
def test_caps_by_hand(limits, batches):
    found = cuts([2, 2, 2, 2], 99, lookahead=2, texts=[2, 2, 1, 3], **limits)
    assert [cut.items for cut in found] == batches


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=300),
    st.integers(50, 200),
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([0, 9, 20]),
)
def test_every_item_comes_once_within_budget_caps_and_bound(
    sizes, budget, lookahead, exact, max_items, max_text_tokens
):
    packer = Packer(budget, lookahead, exact, max_items, max_text_tokens)
    cut, came = [], {}
    for item, size in enumerate(sizes):
        packer.add(item, *size)
        came[item] = len(cut)
        while packer.ready:
            oldest, *_ = packer.waiting
            batch = packer.cut()
            assert oldest in batch.items
            short = [sizes[i][0] - length for i, length in zip(batch.items, batch.lengths, strict=True)]
            assert min(short) >= 0
            assert min(batch.lengths) >= 1
            assert sum(loss > 0 for loss in short) <= exact, "at most one is cut short"
            assert sum(batch.lengths) <= budget
            assert batch.lengths == sorted(batch.lengths, reverse=True)
            assert not max_items or len(batch.items) <= max_items
            assert not max_text_tokens or sum(sizes[i][1] for i in batch.items) <= max_text_tokens
            if exact and not max_items and not max_text_tokens:
                assert sum(batch.lengths) == budget
            waits = [len(cut) - came[i] for i in batch.items]
            assert max(waits) <= lookahead + (STAND_BACK if exact else 0)
            cut.append(batch)
        assert len(packer.waiting) <= budget + lookahead
    seen = [item for batch in cut for item in batch.items] + packer.waiting
    assert sorted(seen) == list(range(len(sizes)))


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 20),
    st.booleans(),
)
def test_what_is_removed_might_never_have_come(items, lookahead, exact):
    packer, other = (Packer(100, lookahead, exact, max_text_tokens=60) for _ in range(2))
    for item, (length, stays) in enumerate(items):
        packer.add(item, length, text_length=length // 2)
        if stays:
            other.add(item, length, text_length=length // 2)
    packer.remove(arrival for arrival, (_, stays) in enumerate(items) if not stays)
    assert packer.waiting == other.waiting
    while other.waiting:
        assert packer.ready == other.ready
        assert packer.choose() == packer.cut() == other.cut()


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=200),
    st.integers(1, 20),
    st.integers(0, 199),
    st.booleans(),
)
def test_what_waits_restores_the_packer(lengths, lookahead, stop, exact):
    packer = Packer(100, lookahead, exact, max_text_tokens=60)
    for item, length in enumerate(lengths[:stop]):
        packer.add(item, length, text_length=length // 2)
        while packer.ready:
            packer.cut()
    restored = Packer(100, lookahead, exact, max_text_tokens=60)
    for item in packer.waiting:
        restored.add(item, lengths[item], text_length=lengths[item] // 2)
    for item, length in enumerate(lengths[stop:], start=stop):
        packer.add(item, length, text_length=length // 2)
        restored.add(item, length, text_length=length // 2)
        while packer.ready:
            assert restored.cut() == packer.cut()
        assert not restored.ready
    assert restored.waiting == packer.waiting


def drawn_lengths(number=10_000):
    """Kept patches of 16 pixels: sides U(64, 256), Beta drop with mean 1/2."""
    random, resolution = np.random.default_rng(0), ResolutionConfig(min_side=64, max_side=256)
    drop = DropConfig(kind="beta", rate=0.5)
    return [
        num_kept(resolution.draw_tokens(random, 0.0, 16), drop.draw_rate(random, 0.0, 0.0))
        for _ in range(number)
    ]


@pytest.mark.parametrize(("exact", "least"), [(False, 0.995), (True, 1.0)])
def test_batches_of_drawn_sides_are_full_and_alike(exact, least):
    lengths = drawn_lengths()
    batches = list(cuts(lengths, 16_384, lookahead=64, exact=exact))[:-2]
    fill = [sum(cut.lengths) / 16_384 for cut in batches]
    assert np.mean(fill) >= least
    images = [len(cut.items) for cut in batches]
    assert np.std(images) / np.mean(images) < 0.08
    lost = [1 - n / lengths[i] for cut in batches for i, n in zip(cut.items, cut.lengths, strict=True)]
    assert np.sum(lost) / len(batches) < 0.1, "the image that is cut short loses little"


@pytest.mark.parametrize("budget", [1024, 4096, 16_384])
def test_the_image_that_is_cut_short_keeps_half_of_what_it_had(budget):
    """Where sizes vary; the mean loss is far smaller."""
    lengths = drawn_lengths(5_000)
    for cut in list(cuts(lengths, budget, lookahead=64, exact=True))[:-2]:
        kept = [n / lengths[i] for i, n in zip(cut.items, cut.lengths, strict=True)]
        assert min(kept) >= 0.5


def test_lengths_that_are_all_alike_leave_no_choice():
    """As the settings say: one image a batch has what the others leave of the budget."""
    found = list(cuts([196] * 200, 3930, lookahead=16, exact=True))
    assert [sorted(set(cut.lengths)) for cut in found[:-2]] == [[10, 196]] * (len(found) - 2)


def test_an_item_longer_than_the_budget_is_a_bug():
    with pytest.raises(AssertionError, match="cannot fit"):
        Packer(10, 1).add("x", 11)
