"""Samples that are read before they are decoded: few where they are large; nothing of those that are bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from navit_clip.data import DataConfig, find_shards
from navit_clip.data.images import EncodedImage
from navit_clip.data.stream import READ_AHEAD, READ_AHEAD_BYTES, Stream, first_state
from navit_clip.errors import SampleError
from tests.data_builders import encode_image, small_tokenizer, solid_picture, write_shard


def read_ahead(folder: Path, image: bytes, extension: str) -> list:
    """What a stream of such images holds before it decodes the first."""
    write_shard(
        folder / "0.tar",
        [{"__key__": f"{number:03}", extension: image, "txt": "a cat"} for number in range(READ_AHEAD + 10)],
    )
    # One block: what is read at a time ends where a block does.
    config = DataConfig(shards=[str(folder / "0.tar")], blocks_per_shard=1, num_workers=0)
    shards = find_shards(config.shards, config.remote)
    stream = Stream(config, shards, small_tokenizer(), 16, 16, 0, 1, first_state(0, 1))
    stream._read_ahead()
    return [read for _, read in stream._ahead]


def test_small_images_are_read_some_at_a_time(tmp_path: Path):
    assert len(read_ahead(tmp_path, encode_image(solid_picture(40, 60)), "png")) == READ_AHEAD


def test_a_large_picture_in_a_small_file_counts_as_what_it_holds(tmp_path: Path):
    image = encode_image(solid_picture(2000, 2500))
    assert len(image) < 100_000
    held = read_ahead(tmp_path, image, "png")
    assert len(held) == 1
    assert held[0].image.num_bytes > READ_AHEAD_BYTES


def test_a_jpeg_holds_its_bytes_alone():
    image = encode_image(solid_picture(2000, 2500), "jpg")
    assert EncodedImage(image).num_bytes == len(image)


def test_a_bad_sample_holds_nothing_of_what_was_read(tmp_path: Path):
    held = read_ahead(tmp_path, b"\xff\xd8\xff" + bytes(1000), "jpg")
    assert len(held) == READ_AHEAD
    for error in held:
        with pytest.raises(SampleError, match="undecodable image") as raised:
            raise error
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None
        assert [entry.name for entry in raised.traceback][1:] == [], "frames hold the bytes"
