"""Members become samples; what a sample lacks is counted under its cause."""

import json
import logging
from collections import Counter

import pytest

from navit_clip.data.faults import Faults
from navit_clip.data.samples import read_captions, read_sample, read_samples
from navit_clip.data.shards import find_shards
from navit_clip.data.tar_index import OpenShard
from navit_clip.errors import ConfigError, DataError, SampleError
from tests.data_builders import write_pairs, write_shard, write_tar


def one(tmp_path, caption_key="txt", labels=False, **members):
    """The only sample of a shard beside a good one, or the cause of its fault."""
    path = tmp_path / "s.tar"
    good = {"__key__": "good", "jpg": b"?", "txt": "good", "json": json.dumps({"text": "good"}), "cls": "0"}
    write_shard(path, [good, {"__key__": "x", **members}])
    faults = Faults()
    samples = list(read_samples([str(path)], caption_key, labels, faults))
    if faults.total:
        (cause,) = faults.counts
        assert "s/x" in faults.examples[cause]
        return cause
    assert samples[-1].key == "s/x"
    return samples[-1]


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "JPG"])
def test_knows_an_image_by_its_extension(tmp_path, extension):
    assert one(tmp_path, **{extension: b"image", "txt": "a caption"}).image == b"image"


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("one", ("one",)),
        ("one\ntwo\n", ("one", "two")),
        ("\n  one \r\n\n\ttwo", ("one", "two")),
        ("naïve ☕", ("naïve ☕",)),
        ("\ufeffone", ("one",)),
    ],
)
def test_reads_a_caption_a_line(tmp_path, text, captions):
    assert one(tmp_path, jpg=b"", txt=text).captions == captions


@pytest.mark.parametrize(
    ("record", "captions"), [({"text": "one"}, ("one",)), ({"text": ["one ", "", "two"]}, ("one", "two"))]
)
def test_reads_captions_from_json(tmp_path, record, captions):
    for mark in ("", "\ufeff"):
        assert one(tmp_path, "json.text", jpg=b"", json=mark + json.dumps(record)).captions == captions


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_may_hold_what_python_writes_for_no_number(tmp_path, mark):
    record = mark + json.dumps({"text": "a", "x": [float("nan"), float("inf")]})
    assert "NaN" in record
    assert one(tmp_path, "json.text", jpg=b"", json=record).captions == ("a",)


@pytest.mark.parametrize(
    ("caption_key", "captions"),
    [
        ("json.translations", ("Ein Frosch.", "Una rana.")),
        ("json.translations.es", ("Una rana.",)),
        ("json.a.b", ("a key with a dot",)),
    ],
)
def test_reads_captions_from_mappings_and_keys_inside_keys(tmp_path, caption_key, captions):
    record = {"translations": {"de": "Ein Frosch.", "es": "Una rana."}, "a.b": "a key with a dot"}
    write_shard(tmp_path / "s.tar", [{"__key__": "x", "jpg": b"", "json": json.dumps(record)}])
    (sample,) = read_samples([str(tmp_path / "s.tar")], caption_key)
    assert sample.captions == captions


def sample_of(tmp_path, other_captions, **members):
    write_shard(tmp_path / "s.tar", [{"__key__": "x", "jpg": b"", **members}])
    (shard,) = find_shards([str(tmp_path / "s.tar")])
    return read_sample(OpenShard(shard), 0, "txt", other_captions=other_captions)


def test_captions_of_several_places_share_their_places_chance(tmp_path):
    record = json.dumps({"long": ["c", "d", "e"]})
    sample = sample_of(tmp_path, {"json.long": 3.0, "json.none": 9.0}, txt="a\nb", json=record)
    assert sample.captions == ("a", "b", "c", "d", "e")
    assert sample.chances == pytest.approx((1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4))
    assert sample_of(tmp_path, {"json.long": 3.0}, json=record).chances == pytest.approx((1 / 3,) * 3)
    with pytest.raises(SampleError, match=r"no caption: s/x: has no \.txt"):
        sample_of(tmp_path, {"json.long": 3.0})


def test_a_file_of_too_many_bytes_is_not_read(tmp_path):
    (shard,) = find_shards(write_pairs(tmp_path, [1]))
    with pytest.raises(SampleError, match=r"too many bytes: .* png has \d+ bytes, over 100"):
        read_sample(OpenShard(shard), 0, "txt", max_bytes=100)


@pytest.mark.parametrize(
    ("caption_key", "members", "cause"),
    [
        ("txt", {"txt": "a caption"}, "no image"),
        ("txt", {"jpg": b""}, "no caption"),
        ("txt", {"jpg": b"", "txt": ""}, "empty caption"),
        ("txt", {"jpg": b"", "txt": " \n\t\n"}, "empty caption"),
        ("txt", {"jpg": b"", "txt": b"\xff\xfe"}, "undecodable caption"),
        ("txt", {"jpg": b"", "txt": "x" * 100_000}, "overlong caption"),
        ("json.text", {"jpg": b"", "txt": "a caption"}, "no caption"),
        ("json.text", {"jpg": b"", "json": "{}"}, "no caption"),
        ("json.text", {"jpg": b"", "json": '{"text": null}'}, "no caption"),
        ("json.text", {"jpg": b"", "json": "[]"}, "no caption"),
        ("json.text", {"jpg": b"", "json": "{"}, "undecodable caption"),
        ("json.text", {"jpg": b"", "json": b'{"text": "\xff"}'}, "undecodable caption"),
        ("json.text", {"jpg": b"", "json": '{"text": 3}'}, "undecodable caption"),
        ("json.text", {"jpg": b"", "json": '{"text": ["a", 3]}'}, "undecodable caption"),
        ("json.text", {"jpg": b"", "json": r'{"text": "half \ud83d of a pair"}'}, "undecodable caption"),
        ("json.text", {"jpg": b"", "json": "[" * 100_000}, "undecodable caption"),
        ("json.text", {"jpg": b"", "json": '{"text": []}'}, "empty caption"),
    ],
)
def test_counts_what_is_wrong_under_its_cause(tmp_path, caption_key, members, cause):
    assert one(tmp_path, caption_key, **members) == cause


def test_reads_labels_only_where_asked(tmp_path):
    assert one(tmp_path, jpg=b"", txt="a", cls="7").label is None
    assert one(tmp_path, jpg=b"", txt="a", cls="cat").label is None
    assert one(tmp_path, None, labels=True, jpg=b"", cls="7\n").label == 7
    assert one(tmp_path, None, labels=True, jpg=b"", cls="cat") == "undecodable label"
    assert one(tmp_path, None, labels=True, jpg=b"") == "no label"


def test_captions_alone_need_no_image(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.json", b'{"kind": ["cat", "dog"]}'), ("y.txt", b"a hen")])
    shard = OpenShard(find_shards([str(tmp_path / "a.tar")])[0])
    assert read_captions(shard, 0, "json.kind") == ("cat", "dog")
    with pytest.raises(SampleError, match=r"no caption: a/y: has no \.json file"):
        read_captions(shard, 1, "json.kind")


def test_needs_no_captions_without_a_caption_key(tmp_path):
    assert one(tmp_path, None, jpg=b"image").captions == ()


def test_goes_through_shards_in_order_and_says_what_it_skipped(tmp_path, caplog):
    paths = write_pairs(tmp_path, [2, 1])
    write_shard(tmp_path / "bad.tar", [{"__key__": "x", "txt": "no image"}])
    with caplog.at_level(logging.WARNING):
        samples = list(read_samples([paths[1], str(tmp_path / "bad.tar"), paths[0]], "txt"))
    names = ["shard-001/sample00002", "shard-000/sample00000", "shard-000/sample00001"]
    assert [sample.key for sample in samples] == names
    assert "3 samples read; 1 skipped: no image: 1 (first bad/x" in caplog.text


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shares_are_every_world_size_th_sample(tmp_path, world_size):
    paths = write_pairs(tmp_path, [2, 0, 3, 2])
    keys = [sample.key for sample in read_samples(paths)]
    for rank in range(world_size):
        share = [sample.key for sample in read_samples(paths, rank=rank, world_size=world_size)]
        # The empty shard is one faulty entry, number 2 of all, and so has its turn.
        numbered = [*keys[:2], None, *keys[2:]]
        assert share == [key for key in numbered[rank::world_size] if key]


def test_no_good_sample_is_an_error_that_counts_the_causes(tmp_path):
    path = tmp_path / "s.tar"
    members = [{"txt": "a"}, {"txt": "a"}, {"jpg": b""}]
    write_shard(path, [{"__key__": key, **member} for key, member in zip("xyz", members, strict=True)])
    with pytest.raises(DataError, match=r"no good sample; 3 skipped: no image: 2 \(first s/x.*no caption: 1"):
        list(read_samples([str(path)], "txt"))


@pytest.mark.parametrize("caption_key", ["text", "json", "json.", "jpg"])
def test_an_unknown_caption_key_is_an_error(tmp_path, caption_key):
    with pytest.raises(ConfigError, match="caption_key"):
        list(read_samples(write_pairs(tmp_path, [1]), caption_key))


def test_faults_keep_the_first_example_of_each_cause():
    faults = Faults()
    for number in range(3):
        faults.add(f"s/{number}", SampleError("no image", f"detail {number}"))
    assert faults.counts == Counter({"no image": 3})
    assert faults.summary() == "3 skipped: no image: 3 (first s/0: detail 0)"
    assert Faults().summary() == "none skipped"
