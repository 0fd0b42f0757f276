"""Patterns find the shards that they name, and say which they do not find."""

import tarfile

import pytest

from navit_clip.data.shards import find_shards, write_shard
from navit_clip.errors import DataError
from tests.data_builders import write_pairs


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path, [1, 1, 1])
    (tmp_path / "notes.txt").write_text("not a shard")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{}/shard-001.tar", ["shard-001"]),
        ("{}/shard-{{000..002}}.tar", ["shard-000", "shard-001", "shard-002"]),
        ("{}/shard-{{002,000}}.tar", ["shard-002", "shard-000"]),
        ("{}/*-00[12].tar", ["shard-001", "shard-002"]),
        ("{}", ["shard-000", "shard-001", "shard-002"]),
        ("{0}/shard-002.tar::{0}/shard-000.tar", ["shard-002", "shard-000"]),
    ],
)
def test_finds_what_a_pattern_names(folder, pattern, names):
    assert [shard.name for shard in find_shards([pattern.format(folder)])] == names


def test_keeps_the_order_of_patterns(folder):
    shards = find_shards([f"{folder}/shard-002.tar", f"{folder}/shard-00{{0,1}}.tar"])
    assert [shard.name for shard in shards] == ["shard-002", "shard-000", "shard-001"]


@pytest.mark.parametrize(
    "pattern", ["{}/other-*.tar", "{}/none/{{00..99}}.tar", "{}/none", "memory://bucket/*.tar"]
)
def test_names_the_pattern_that_matches_nothing(folder, pattern):
    with pytest.raises(DataError, match="no shard matches") as caught:
        find_shards([f"{folder}/shard-000.tar", pattern.format(folder)])
    assert pattern.format(folder) in str(caught.value)


def test_names_all_patterns_that_match_nothing(folder):
    patterns = [f"{folder}/none-*.tar", f"{folder}/*.tar", f"{folder}/shard-{{002..003}}.tar"]
    with pytest.raises(
        DataError, match=r"no shard matches .*none-.*\n  shard pattern .*1 of 2 files are missing"
    ):
        find_shards(patterns)


def test_a_missing_file_among_braces_is_an_error(folder):
    with pytest.raises(DataError, match=r"1 of 4 files are missing, the first is .*shard-003\.tar"):
        find_shards([f"{folder}/shard-{{000..003}}.tar"])


@pytest.mark.parametrize("again", ["shard-001.tar", "./shard-001.tar", "../{}/shard-001.tar"])
def test_a_shard_named_twice_is_an_error(folder, again):
    with pytest.raises(DataError, match="named twice"):
        find_shards([str(folder), f"{folder}/{again.format(folder.name)}"])


def test_a_folder_without_shards_is_said_to_be_one(tmp_path):
    with pytest.raises(DataError, match=rf"no shard matches '{tmp_path}' \(a folder without \.tar files\)"):
        find_shards([str(tmp_path)])


@pytest.mark.parametrize("pattern", ["notes.txt", "*", "shard-001.tar::notes.txt"])
def test_a_file_that_is_no_shard_is_told_apart_from_a_damaged_one(folder, monkeypatch, pattern):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=r"expected uncompressed tars alone, found notes\.txt$"):
        find_shards([pattern])
    (folder / "shard-000.tar").write_text("damaged")
    (folder / "shard-001.tar").rename(folder / "notes.txt")
    assert [shard.path for shard in find_shards(["*"])] == ["notes.txt", "shard-000.tar", "shard-002.tar"]


def test_no_pattern_is_an_error():
    with pytest.raises(DataError, match="no shards given"):
        find_shards([])


def test_shards_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_pairs(tmp_path / name, [1])
    assert [shard.name for shard in find_shards([f"{tmp_path}/{{a,b}}"])] == ["a/shard-000", "b/shard-000"]


def test_equal_samples_are_written_as_equal_bytes(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, [{"__key__": "x", "txt": "a caption", "png": b"bytes"}])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["x.png", "x.txt"]
