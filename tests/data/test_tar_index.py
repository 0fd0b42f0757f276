"""Samples are found in a tar, and what is wrong with a tar is met exactly once."""

import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from navit_clip.data import tar_index
from navit_clip.data.shards import Shard
from navit_clip.data.tar_index import OpenShard, OpenShards
from navit_clip.errors import DataError, SampleError
from tests.data_builders import write_pairs, write_tar


def opened(path: Path) -> OpenShard:
    return OpenShard(Shard(str(path), path.stem))


def contents(path: Path) -> tuple[dict[str, dict[str, bytes]], Counter[str]]:
    """Good samples by key, and faults by cause."""
    shard, good, faults = opened(path), {}, Counter()
    for index in range(len(shard)):
        try:
            good[shard.key(index)] = shard.read(index, lambda extension: True)
        except SampleError as error:
            faults[error.cause] += 1
    return good, faults


def test_groups_members_by_the_first_dot_of_the_file_name(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(
        path,
        [
            ("a.JPG", b"1"),
            ("a.seg.png", b"2"),
            ("a.txt", b""),
            ("dir.v2/b.txt", b"3"),
            ("__meta__.json", b"4"),
            (".hidden", b"5"),
            ("no_extension", b"6"),
            ("../../c.txt", b"7"),
            ("/etc/d.txt", b"8"),
        ],
    )
    assert contents(path) == (
        {
            "s/a": {"jpg": b"1", "seg.png": b"2", "txt": b""},
            "s/dir.v2/b": {"txt": b"3"},
            "s/../../c": {"txt": b"7"},
            "s//etc/d": {"txt": b"8"},
        },
        {},
    )


def test_reads_only_what_is_wanted(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(path, [("a.txt", b"1"), ("a.pyd", b"2")])
    assert opened(path).read(0, {"txt"}.__contains__) == {"txt": b"1"}


def test_a_long_name_is_read(tmp_path):
    path = tmp_path / "s.tar"
    name = "n" * 300
    write_tar(path, [(f"{name}.txt", b"1")])
    assert contents(path) == ({f"s/{name}": {"txt": b"1"}}, {})


def test_duplicate_keys_are_faults(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(path, [("a.txt", b"1"), ("b.txt", b"2"), ("b.txt", b"3"), ("a.txt", b"4"), ("c.txt", b"5")])
    good, faults = contents(path)
    assert good == {"s/a": {"txt": b"1"}, "s/c": {"txt": b"5"}}
    assert faults == {"duplicate key": 2}


def test_a_shard_cut_off_anywhere_gives_its_whole_samples_and_one_fault(tmp_path):
    (path,) = (Path(name) for name in write_pairs(tmp_path, [5]))
    whole, none = contents(path)
    assert len(whole) == 5
    assert not none
    data = path.read_bytes()
    blocks = [offset for offset in range(0, len(data), 512) if any(data[offset : offset + 512])]
    last = max(blocks) + 512
    cut = tmp_path / "cut" / path.name
    cut.parent.mkdir()
    for size in [*range(512, last, 512), *range(700, last, 1777)]:
        cut.write_bytes(data[:size])
        good, faults = contents(cut)
        assert faults == {"truncated shard": 1}
        for key, members in good.items():
            assert all(whole[key][extension] == member for extension, member in members.items())


def test_a_sample_that_was_cut_off_in_a_file_is_no_other_fault(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(path, [("a.txt", b"1"), ("a.jpg", b"2"), ("b.txt", b"3"), ("b.jpg", bytes(2000))])
    path.write_bytes(path.read_bytes()[:4700])
    assert contents(path) == ({"s/a": {"txt": b"1", "jpg": b"2"}}, {"truncated shard": 1})
    path.write_bytes(path.read_bytes()[:3072])  # after b.txt
    assert contents(path) == ({"s/a": {"txt": b"1", "jpg": b"2"}}, {"truncated shard": 1})
    path.write_bytes(path.read_bytes()[:2048])  # after a.jpg
    assert contents(path) == ({"s/a": {"txt": b"1", "jpg": b"2"}}, {"truncated shard": 1})
    write_tar(tmp_path / "t.tar", [("a.txt", bytes(1000))])
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:600])
    assert contents(tmp_path / "t.tar") == ({}, {"truncated shard": 1})


@pytest.mark.parametrize("data", [b"", b"no tar at all", os.urandom(4096), b"\x1f\x8b" + bytes(2000)])
def test_a_file_that_is_no_tar_is_one_fault(tmp_path, data):
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    assert contents(path) == ({}, {"unreadable shard": 1})


def test_a_tar_without_samples_is_one_fault(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(path, [])
    assert contents(path) == ({}, {"empty shard": 1})


def test_a_broken_header_ends_the_shard(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(path, [("a.txt", b"1"), ("b.txt", b"2"), ("c.txt", b"3")])
    data = bytearray(path.read_bytes())
    data[1024:1034] = b"\xff" * 10
    path.write_bytes(data)
    assert contents(path) == ({"s/a": {"txt": b"1"}}, {"truncated shard": 1})


def write_headers(path: Path, *headers: tuple[bytes, bytes]) -> None:
    """A tar of headers alone, each of a type and with twelve bytes for the size, whatever they say."""
    blocks = bytearray()
    for number, (kind, size) in enumerate(headers):
        block = bytearray(tarfile.TarInfo(f"{number}.txt").tobuf(tarfile.GNU_FORMAT))
        block[124:136], block[156:157] = size, kind
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * ord(" "))
        blocks += block
    path.write_bytes(bytes(blocks) + bytes(1024))


BACK, FAR = b"\xff" * 10 + b"\xfe\x00", b"\x80" + b"\x7f" * 11
"""Sizes of minus one block, which leads back to the header itself, and of more than any file has."""


@pytest.mark.parametrize("size", [BACK, FAR])
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"S"])
def test_a_hostile_header_ends_the_shard(tmp_path, kind, size):
    path = tmp_path / "s.tar"
    write_headers(path, (b"0", b"%011o\0" % 0), (kind, size))
    good, faults = contents(path)
    assert good["s/0"] == {"txt": b""}
    assert faults == {"truncated shard": 1}
    write_headers(path, (kind, size))
    assert contents(path)[1].total() == 1


def test_a_name_that_is_not_utf_8_is_a_key_like_any_other(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(path, [("caf\udce9.txt", b"1"), ("caf\udce8.txt", b"2")])
    good, faults = contents(path)
    assert good == {"s/caf\\xe9": {"txt": b"1"}, "s/caf\\xe8": {"txt": b"2"}}
    assert not faults


def test_a_shard_that_has_vanished_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"gone\.tar cannot be read: No such file"):
        opened(tmp_path / "gone.tar")


def test_a_shard_that_can_no_longer_be_read_is_an_error(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(path, [("a.txt", b"1")])
    shard = opened(path)
    shard.close()
    with pytest.raises(DataError, match=r"s\.tar cannot be read: Bad file descriptor"):
        shard.read(0, lambda extension: True)


def test_a_shard_that_shrinks_while_open_is_a_fault(tmp_path):
    path = tmp_path / "s.tar"
    write_tar(path, [("a.txt", b"12345678")])
    shard = opened(path)
    os.truncate(path, 516)
    with pytest.raises(SampleError, match=r"truncated shard: s/a: txt has 4 bytes, not 8"):
        shard.read(0, lambda extension: True)


def test_the_least_recently_used_shards_are_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "MAX_OPEN_FILES", 2)
    paths = write_pairs(tmp_path, [1, 1, 1])
    shards = OpenShards([Shard(path, Path(path).stem) for path in paths])
    first, second = shards[0], shards[1]
    assert shards[0] is first
    assert shards[2].key(0) == "shard-002/sample00002"
    assert shards[0] is first
    assert not second.close.alive
    assert shards[1] is not second
