"""Every sample once an epoch, for any number of workers; and the walk goes on from its state."""

import json
from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from navit_clip.data.order import BlockOrder, Place, Walk, blocks_done, first_walk
from navit_clip.errors import CheckpointError

SIZES = [7, 1, 12, 0, 3]


def walk(worker=0, num_workers=1, state=None, sizes=SIZES, blocks=3, window=4, seed=0):
    order = BlockOrder(num_shards=len(sizes), blocks_per_shard=blocks, seed=seed)
    return Walk(order, num_workers, window, sizes.__getitem__, state or first_walk(worker))


def all_places(epoch, sizes=SIZES):
    return {(epoch, shard, entry) for shard, size in enumerate(sizes) for entry in range(size)}


def in_epoch(place: Place) -> tuple[int, int, int]:
    return place.epoch, place.shard, place.entry


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("window", [1, 4, 100])
def test_every_sample_comes_once_an_epoch(num_workers, window):
    """Each worker walks past the epochs looked at; of 40 workers for 15 blocks, some skip epochs."""
    seen = Counter()
    for worker in range(num_workers):
        epochs = -1
        for place in walk(worker, num_workers, window=window):
            assert place.epoch >= epochs, "a worker is never back in an earlier epoch"
            epochs = place.epoch
            if epochs > 2:
                break
            seen[in_epoch(place)] += 1
    assert seen == Counter(all_places(0) | all_places(1) | all_places(2))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 6),
)
def test_every_sample_comes_once_whatever_the_sizes(sizes, blocks, window, num_workers):
    seen = Counter()
    for worker in range(num_workers):
        for place in walk(worker, num_workers, sizes=sizes, blocks=blocks, window=window):
            if place.epoch > 0:
                break
            seen[in_epoch(place)] += 1
    assert seen == Counter(all_places(0, sizes))


def test_epochs_and_seeds_differ_in_order():
    size = sum(SIZES)
    steps = list(islice(walk(), 2 * size))
    entries = [(place.shard, place.entry) for place in steps]
    assert entries[:size] != entries[size:]
    assert entries[:size] != [(place.shard, place.entry) for place in islice(walk(seed=1), size)]
    assert steps == list(islice(walk(), 2 * size))


def test_samples_of_a_shard_are_spread():
    """With a window of all blocks the order is about uniform: neighbours are rarely neighbours again."""
    entries = [place.entry for place in islice(walk(sizes=[1000], blocks=8, window=8), 1000)]
    assert sum(abs(a - b) == 1 for a, b in pairwise(entries)) < 10


@given(st.integers(0, 80), st.integers(1, 3), st.integers(1, 20))
def test_a_walk_goes_on_from_its_state(stop, num_workers, window):
    whole = walk(0, num_workers, window=window)
    for _ in range(stop):
        next(whole)
    state = json.loads(json.dumps(whole.state()))
    again = walk(0, num_workers, state, window=window)
    assert again.state() == state
    assert list(islice(again, 50)) == list(islice(whole, 50))


def test_blocks_done_grow_by_an_epochs_blocks_in_an_epoch():
    steps = walk()
    done = []
    for _ in range(3 * sum(SIZES)):
        next(steps)
        done.append(blocks_done(steps.state()))
    assert done == sorted(done)
    # The blocks of the shards that are smaller than their number of blocks are empty, and count as they pass.
    assert [round(done[epoch * sum(SIZES) - 1]) for epoch in (1, 2, 3)] == pytest.approx([15, 30, 45], abs=6)


def test_only_shards_of_open_blocks_are_asked_for_their_size():
    asked = []
    order = BlockOrder(num_shards=1000, blocks_per_shard=4, seed=0)
    steps = Walk(order, 1, 3, lambda shard: asked.append(shard) or 8, first_walk(0))
    next(steps)
    assert len(asked) == 3


def test_a_shard_that_has_changed_is_an_error():
    steps = walk(sizes=[30], blocks=2, window=1)
    next(steps)
    with pytest.raises(CheckpointError, match=r"shard number 0 has changed: .* had 15 samples .* has 20"):
        walk(sizes=[40], blocks=2, window=1, state=steps.state())
