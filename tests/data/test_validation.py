"""Validation sees every pair once, over any number of ranks, with nothing drawn."""

import pytest

from navit_clip.batch import lengths_of
from navit_clip.data.faults import Faults
from navit_clip.data.patches import image_patches
from navit_clip.data.validation import ValidationDataConfig, validation_batches
from navit_clip.errors import ConfigError, DataError
from tests.data_builders import pair, small_tokenizer, write_pairs, write_shard


def batches(shards, rank=0, world_size=1, faults=None, **changes):
    settings = {"shards": shards, "side": 64, "tokens_per_batch": 100, **changes}
    config = ValidationDataConfig(**settings)
    return list(validation_batches(config, small_tokenizer(), 8, 16, rank, world_size, faults))


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_every_pair_once_over_all_ranks(tmp_path, world_size):
    shards = write_pairs(tmp_path, [11, 6])
    keys = [
        key for rank in range(world_size) for batch in batches(shards, rank, world_size) for key in batch.keys
    ]
    assert len(keys) == len(set(keys)) == 17


def test_a_pass_is_the_same_each_time_and_equals_evaluation(tmp_path):
    write_shard(tmp_path / "s.tar", [pair(f"x{n}", n, f"first {n}\nsecond {n}") for n in range(9)])
    first, second = (batches([str(tmp_path)], template="a {}") for _ in range(2))
    assert [batch.keys for batch in first] == [batch.keys for batch in second]
    numbers = []
    for batch in first:
        assert batch.images.num_tokens <= 100
        ids = batch.captions.ids.split(lengths_of(batch.captions.offsets))
        pixels = batch.images.patches.split(lengths_of(batch.images.offsets))
        for i, key in enumerate(batch.keys):
            number = int(key.removeprefix("s/x"))
            numbers.append(number)
            assert ids[i].tolist() == small_tokenizer().encode([f"a first {number}"], 16)[0]
            whole = image_patches(pair("x", number)["png"], 8, 64)
            assert pixels[i].numpy().tobytes() == whole.pixels.tobytes()
    assert sorted(numbers) == list(range(9))


def test_bad_samples_are_counted_and_skipped(tmp_path):
    bad = [{"__key__": "x", "jpg": b"bad", "txt": "a"}, {"__key__": "y", "txt": "a"}]
    write_shard(tmp_path / "s.tar", [*bad, pair("z", 0)])
    faults = Faults()
    (batch,) = batches([str(tmp_path)], faults=faults)
    assert batch.keys == ("s/z",)
    assert faults.counts == {"undecodable image": 1, "no image": 1}
    assert batches([str(tmp_path)], rank=0, world_size=3) == []
    write_shard(tmp_path / "s.tar", bad)
    with pytest.raises(DataError, match="no good sample; 2 skipped"):
        batches([str(tmp_path)])


def test_an_image_that_fits_no_batch_is_an_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^validation\.data\.tokens_per_batch: expected at least 64, .* found 63"
    ):
        batches([str(tmp_path)], tokens_per_batch=63)


@pytest.mark.parametrize(
    ("field", "value"), [("side", 0), ("tokens_per_batch", 0), ("template", "x"), ("caption_key", "x")]
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        batches(["x.tar"], **{field: value})


def test_no_grid_is_longer_than_positions_reach(tmp_path):
    shards = write_pairs(tmp_path, [7])
    config = ValidationDataConfig(shards=shards, side=64, tokens_per_batch=128)
    for longest, most in ((0, 21), (5, 5)):
        batches = validation_batches(config, small_tokenizer(), 8, 16, longest=longest)
        assert max(batch.images.max_side for batch in batches) == most
