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


def unprepared(shard):
    """For walks over shards that need no fetching."""


def walk(worker=0, num_workers=1, state=None, sizes=SIZES, blocks=3, window=4, seed=0):
    order = BlockOrder(num_shards=len(sizes), blocks_per_shard=blocks, seed=seed)
    return Walk(order, num_workers, window, sizes.__getitem__, unprepared, state or first_walk(worker))


def all_places(epoch, sizes=SIZES):
    return {(epoch, shard, entry) for shard, size in enumerate(sizes) for entry in range(size)}


def in_epoch(place: Place) -> tuple[int, int, int]:
    return place.visit, place.shard, place.entry


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("window", [1, 4, 100])
def test_every_sample_comes_once_an_epoch(num_workers, window):
    """Each worker walks past the epochs looked at; of 40 workers for 15 blocks, some skip epochs."""
    seen = Counter()
    for worker in range(num_workers):
        epochs = -1
        for place in walk(worker, num_workers, window=window):
            assert place.visit >= epochs, "a worker is never back in an earlier epoch"
            epochs = place.visit
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
            if place.visit > 0:
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


@given(st.integers(0, 80), st.integers(1, 20))
def test_looking_ahead_takes_nothing(start, number):
    steps = walk()
    for _ in range(start):
        next(steps)
    ahead, state = steps.ahead(number), steps.state()
    assert 1 <= len(ahead) <= number
    assert ahead == list(islice(walk(state=state), len(ahead))), "the state is before what was looked at"
    assert ahead == list(islice(steps, len(ahead)))


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
    steps = Walk(order, 1, 3, lambda shard: asked.append(shard) or 8, unprepared, first_walk(0))
    next(steps)
    assert len(asked) == 3


@pytest.mark.parametrize("state", [first_walk(0), {**first_walk(40), "backlog": [[7, 0], [3, 1]]}])
def test_the_next_shard_is_prepared_while_one_is_read(state):
    asked, prepared = [], []
    order = BlockOrder(num_shards=1000, blocks_per_shard=1, seed=0)
    for _ in islice(Walk(order, 4, 2, lambda shard: asked.append(shard) or 8, prepared.append, state), 100):
        assert len(prepared) == len(asked)
    assert len(asked) > 12
    assert prepared[:-1] == asked[1:], "each but the first was prepared, in this order"


def test_a_shard_that_has_changed_is_an_error():
    steps = walk(sizes=[30], blocks=2, window=1)
    next(steps)
    with pytest.raises(CheckpointError, match=r"shard number 0 has changed: .* had 15 samples .* has 20"):
        walk(sizes=[40], blocks=2, window=1, state=steps.state())


def visits(weights, epochs, num_workers=1, blocks=2, **options):
    """How often each sample comes on each of its visits within some epochs, and in which epochs."""
    order = BlockOrder(num_shards=len(weights), blocks_per_shard=blocks, seed=0, weights=weights, **options)
    seen, by_epoch = Counter(), Counter()
    for worker in range(num_workers):
        for place in Walk(order, num_workers, 3, lambda shard: 6, unprepared, first_walk(worker)):
            if order.epoch(place.position) >= epochs:
                break
            seen[place.visit, place.shard, place.entry] += 1
            by_epoch[order.epoch(place.position), place.shard] += 1
    return seen, by_epoch


@pytest.mark.parametrize("num_workers", [1, 3])
def test_weights_say_how_often_an_epoch_has_each_sample(num_workers):
    seen, by_epoch = visits([1.0, 2.0, 0.5, 0.3], epochs=10, num_workers=num_workers)
    assert set(seen.values()) == {1}, "each visit of a sample comes once"
    totals = Counter()
    for _, shard, _ in seen:
        totals[shard] += 1
    assert totals == {0: 60, 1: 120, 2: 30, 3: 18}
    for epoch in range(10):
        assert by_epoch[epoch, 0] == 6
        assert by_epoch[epoch, 1] == 12
    numbers = Counter((shard, entry) for _, shard, entry in seen)
    for visit, shard, entry in seen:
        assert visit < numbers[shard, entry], "visits are numbered without gaps"


def test_equal_weights_of_one_change_nothing():
    plain, weighted = (
        list(islice(Walk(BlockOrder(num_shards=5, blocks_per_shard=3, seed=0, weights=weights), 1, 4,
                         SIZES.__getitem__, unprepared, first_walk(0)), 60))
        for weights in ((), [1.0] * 5)
    )  # fmt: skip
    assert plain == weighted


def test_resampling_draws_by_the_weights_and_never_draws_alike():
    seen, _ = visits([1.0, 3.0], epochs=60, blocks=6, resampled=True)
    totals = Counter()
    for (_, shard, _), count in seen.items():
        assert count == 1
        totals[shard] += 1
    assert totals.total() == 60 * 24
    assert 0.68 < totals[1] / totals.total() < 0.82
    distinct = {(shard, entry) for visit, shard, entry in seen if visit < 24}
    assert len(distinct) < 12, "some blocks are drawn again before others come"
