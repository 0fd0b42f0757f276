"""Each fault is named, and the exit code says whether there is any."""

from pathlib import Path

import pytest

from navit_clip.cli import main
from navit_clip.shards.manifest import Manifest, ShardRecord, sha256_of
from tests.data_builders import encode_image, noise_picture, pair, write_pairs, write_shard


@pytest.mark.parametrize("workers", [1, 2])
def test_names_every_fault(tmp_path, capsys, workers):
    bad = [
        {"__key__": "corrupt", "jpg": encode_image(noise_picture(40, 40), "jpg")[:300], "txt": "a"},
        {"__key__": "no-caption", "png": encode_image(noise_picture(9, 9))},
    ]
    write_shard(tmp_path / "a.tar", [pair("good", 0), *bad])
    (tmp_path / "b.tar").write_bytes(b"no tar")
    assert main(["shards", "validate", str(tmp_path), "--workers", str(workers)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines[:-1]] == [
        ["a/corrupt", "undecodable image"],
        ["a/no-caption", "no caption"],
        ["b/(end of file)", "unreadable shard"],
    ]
    assert lines[-1].startswith("1 good sample, 3 faults, 2 shards")


def test_captions_and_labels_are_asked_for_as_told(tmp_path):
    write_shard(tmp_path / "a.tar", [{"__key__": "x", "png": encode_image(noise_picture(9, 9))}])
    assert main(["shards", "validate", str(tmp_path), "--caption-key", ""]) == 0
    assert main(["shards", "validate", str(tmp_path), "--caption-key", "", "--labels"]) == 1
    assert main(["shards", "validate", str(tmp_path), "--caption-key", "text"]) == 2
    assert main(["shards", "validate", str(tmp_path / "none")]) == 2
    assert main(["shards", "validate", str(tmp_path), "--workers", "0"]) == 2


def test_shards_are_compared_with_their_manifest(tmp_path, capsys):
    first, second = write_pairs(tmp_path, [2, 1])
    record = ShardRecord("shard-000.tar", 2, 1, sha256_of(tmp_path / "shard-000.tar"), 2)
    Manifest({}, [record], complete=True).write(tmp_path)
    assert main(["shards", "validate", first]) == 0
    assert main(["shards", "validate", second]) == 1
    assert "not in the manifest" in capsys.readouterr().out
    write_shard(tmp_path / "shard-000.tar", [pair("other", 0)])
    assert main(["shards", "validate", first]) == 1
    assert "wrong checksum" in capsys.readouterr().out
    (tmp_path / "shard-000.tar").unlink()
    Manifest(
        {}, [record, ShardRecord("shard-001.tar", 1, 1, sha256_of(Path(second)), 1)], complete=True
    ).write(tmp_path)
    assert main(["shards", "validate", str(tmp_path)]) == 1
    assert "shard-000: missing shard" in capsys.readouterr().out
