"""All real shards, three epochs, any ranks and workers: each good key once an epoch, and drawn alike."""

from collections import Counter
from functools import cache

import pytest

from navit_clip.data.config import DataConfig
from navit_clip.data.loader import TrainLoader
from navit_clip.data.resolution import ResolutionConfig
from tests.data_builders import draws_of, small_tokenizer

EPOCHS = 3
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_data,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


def draws_on_all_ranks(shards, ranks, workers, epochs=EPOCHS + 1):
    """Every (key, draw) in the order of its coming, rank after rank, each rank well past `epochs` epochs."""
    config = DataConfig(
        shards=[str(shards)],
        other_captions={"json.classname": 1.0},
        templates=["{}", "a photo of {}"],
        resolution=ResolutionConfig(min_side=32, max_side=64),
        tokens_per_batch=512,
        lookahead=8,
        num_workers=workers,
    )
    for rank in range(ranks):
        loader = TrainLoader(config, small_tokenizer(), 16, 16, seed=0, rank=rank, world_size=ranks)
        for batch in loader:
            yield from draws_of(batch)
            if loader.epoch >= epochs:
                break


@cache
def reference_draws(shards):
    """From one uninterrupted stream, in which a key comes for the n-th time in the n-th epoch.

    What `EPOCHS` epochs draw, and what many more do: a draw may come again by chance.
    """
    times, first, all_draws = Counter(), Counter(), Counter()
    for key, digest in draws_on_all_ranks(shards, 1, 0, epochs=EPOCHS + 4):
        times[key] += 1
        all_draws[key, digest] += 1
        first[key, digest] += times[key] <= EPOCHS
    assert min(times.values()) >= EPOCHS + 3
    return first, all_draws


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_good_key_once_an_epoch_with_the_same_draws(real_shards, ranks, workers):
    first, all_draws = reference_draws(real_shards)
    draws = Counter(draws_on_all_ranks(real_shards, ranks, workers))
    assert first <= draws, "none is lost"
    assert draws <= all_draws, "none comes twice, or in another epoch's place"
