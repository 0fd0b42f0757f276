"""A folder and a table become shards that the stream reads, the same bytes whatever happened on the way."""

import csv
import json
import os
import resource
import signal
import sys
from itertools import count

import pytest

from navit_clip.cli import main
from navit_clip.data.faults import Faults
from navit_clip.data.samples import read_samples
from navit_clip.errors import ConfigError, DataError
from navit_clip.file_lock import locked
from navit_clip.shards import building
from navit_clip.shards.building import Build, build_shards
from navit_clip.shards.manifest import read_manifest, sha256_of
from tests.data_builders import encode_image, noise_picture
from tests.ranks import exit_codes

CAPTIONS = {f"{number}.png": [f"picture {number}", f"another of {number}"] for number in range(7)}


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for number, name in enumerate(CAPTIONS):
        (tmp_path / "images" / name).write_bytes(encode_image(noise_picture(20, 10 + number, seed=number)))
    return tmp_path / "images"


def rows():
    return [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]


def write_csv(path, rows, header=("image", "caption")):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def build(images, table, out, **changes):
    faults = Faults()
    return build_shards(Build(images, table, out, **{"images_per_shard": 3, **changes}), faults), faults


def check(out):
    samples = list(read_samples([str(out)], "txt"))
    assert [sample.captions for sample in samples] == [tuple(captions) for captions in CAPTIONS.values()]
    assert next(read_samples([str(out)], "json.captions")).captions == samples[0].captions
    return samples


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
def test_builds_from_any_table(tmp_path, images, extension):
    table = tmp_path / f"table.{extension}"
    if extension == "jsonl":
        table.write_text(
            "\n".join(json.dumps({"image": name, "caption": list(c)}) for name, c in CAPTIONS.items())
        )
    elif extension == "parquet":
        import pyarrow
        from pyarrow import parquet

        names, captions = zip(*rows(), strict=True)
        parquet.write_table(pyarrow.table({"image": names, "caption": captions}), table)
    else:
        write_csv(table, rows())
    manifest, faults = build(images, table, tmp_path / "out")
    samples = check(tmp_path / "out")
    assert [sample.image for sample in samples] == [(images / name).read_bytes() for name in CAPTIONS]
    assert [shard.samples for shard in manifest.shards] == [3, 3, 1]
    assert not faults.total
    assert read_manifest(tmp_path / "out") == manifest
    for shard in manifest.shards:
        path = tmp_path / "out" / shard.name
        assert (path.stat().st_size, sha256_of(path)) == (shard.bytes, shard.sha256)


def test_other_columns_go_into_the_json(tmp_path, images):
    write_csv(tmp_path / "t.csv", [("0.png", "a\nb", "cc0")], ("file", "text", "licence"))
    build(images, tmp_path / "t.csv", tmp_path / "out", image_column="file", caption_column="text")
    (sample,) = read_samples([str(tmp_path / "out")], "json.licence")
    assert sample.captions == ("cc0",)
    assert next(read_samples([str(tmp_path / "out")], "txt")).captions == ("a b",)


def killed_at_file(number: int, out: str, words: list[str]) -> int:
    """The command, which SIGKILL ends before it opens or renames its `number`th file in the folder `out`."""
    files = count(1)

    def watch(event, details):
        own = event in ("open", "os.rename") and str(details[0]).startswith(out)
        if own and next(files) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return main(words)


def killed_at_byte(number: int, out: str, words: list[str]) -> int:
    """The command, which the system ends as it writes byte `number` of a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    sys.dont_write_bytecode = True  # Python would leave modules that are cut short
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    return main(words)


def test_a_killed_build_ends_in_the_same_bytes_when_it_is_run_again(tmp_path, images, capsys):
    table = write_csv(tmp_path / "t.csv", [*rows(), ("missing.png", "x")])
    whole, _ = build(images, table, tmp_path / "whole", images_per_shard=4)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    left, ended = set(), None
    kills = [(killed_at_byte, 3000), *((killed_at_file, number) for number in range(1, 100))]
    for way, number in kills:
        out = tmp_path / f"{way.__name__} {number}"
        words = ["shards", "build", str(images), str(table), str(out), "--images-per-shard", "4"]
        (ended,) = exit_codes(1, way, number, str(out), words)
        if ended == 0:
            break
        assert ended == (-signal.SIGKILL if way == killed_at_file else -signal.SIGXFSZ)
        left |= {path.name for path in out.iterdir()}
        if (out / "00000.tar").exists():
            assert main(["shards", "validate", str(out)]) == 1
            assert "unfinished build" in capsys.readouterr().out
        manifest, faults = build(images, table, out, images_per_shard=4)
        assert manifest == whole
        assert faults.counts == {"missing image": 1}
        assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
    assert ended == 0, "the last was not killed: there were no more files"
    assert {".manifest.json.partial", ".00001.tar.partial", "00001.tar"} <= left


def test_a_shard_that_is_lost_or_damaged_comes_back(tmp_path, images, monkeypatch):
    table = write_csv(tmp_path / "t.csv", [("missing.png", "x"), *rows()])
    whole, _ = build(images, table, tmp_path / "out")
    names = ("manifest.json", *(shard.name for shard in whole.shards))
    expected = [(tmp_path / "out" / name).read_bytes() for name in names]
    written, write = [], building._write
    monkeypatch.setattr(
        building, "_write", lambda path, *more: written.append(path.name) or write(path, *more)
    )
    (tmp_path / "out" / "00000.tar").unlink()
    damaged = tmp_path / "out" / "00002.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    manifest, faults = build(images, table, tmp_path / "out")
    assert written == ["00000.tar", "00002.tar"]
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == expected
    assert manifest == whole
    assert faults.counts == {"missing image": 1}


def test_a_lost_shard_is_not_made_of_other_images(tmp_path, images):
    table = write_csv(tmp_path / "t.csv", rows())
    build(images, table, tmp_path / "out")
    (tmp_path / "out" / "00001.tar").unlink()
    for picture in images.rglob("*.*"):
        picture.write_bytes(encode_image(noise_picture(9, 9, seed=5)))
    with pytest.raises(DataError, match=r"00001.tar: lost or damaged, .* its images have changed since"):
        build(images, table, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if "00001" in path.name) == []


def test_a_shard_that_the_manifest_does_not_have_is_named(tmp_path, images):
    table = write_csv(tmp_path / "t.csv", rows())
    build(images, table, tmp_path / "out")
    (tmp_path / "out" / "00077.tar").write_bytes((tmp_path / "out" / "00000.tar").read_bytes())
    with pytest.raises(DataError, match=r"holds 00077.tar, which manifest.json does not have"):
        build(images, table, tmp_path / "out")


def test_rows_without_an_image_are_counted_one_by_one(tmp_path, images):
    table = write_csv(tmp_path / "t.csv", [("", "x"), ("", "y"), ("", "z"), *rows()])
    manifest, faults = build(images, table, tmp_path / "out")
    assert faults.counts == {"no image": 3}
    assert [(shard.samples, shard.rows) for shard in manifest.shards] == [(3, 6), (3, 3), (1, 1)]


@pytest.mark.parametrize(
    ("bad", "sizes"),
    [
        (range(3), [3, 3, 1]),
        (range(3, 9), [3, 3, 1]),
        (range(6, 7), [3, 3, 1]),
        (range(7, 14), [3, 3, 1]),
        (range(7, 15), [7]),
    ],
)
def test_a_shard_without_samples_is_not_written(tmp_path, images, bad, sizes):
    """Bad images, wherever in the table they are, make a shard of more of it, not one of fewer samples."""
    names = iter(CAPTIONS)
    lines = [(f"gone{n}.png" if n in bad else next(names), f"of row {n}") for n in range(7 + len(bad))]
    table = write_csv(tmp_path / "t.csv", lines)
    for _ in range(2):  # again, where all is there
        manifest, faults = build(images, table, tmp_path / "out", images_per_shard=sizes[0])
        assert manifest == read_manifest(tmp_path / "out")
        assert [shard.samples for shard in manifest.shards] == sizes
        assert sum(shard.rows for shard in manifest.shards) == 7 + len(bad)
        assert faults.counts == manifest.skipped == {"missing image": len(bad)}
    written = sorted((tmp_path / "out").glob("*.tar"))
    assert [path.name for path in written] == [f"{number:05d}.tar" for number in range(len(sizes))]
    written[-1].unlink()
    assert build(images, table, tmp_path / "out", images_per_shard=sizes[0])[0] == manifest
    assert main(["shards", "validate", str(tmp_path / "out")]) == 0


def test_two_builds_at_once_in_one_folder_are_one_too_many(tmp_path, images):
    table = write_csv(tmp_path / "t.csv", rows())
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / building.LOCK_FILE):
        with pytest.raises(DataError, match="out: another build is at work in it"):
            build(images, table, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [building.LOCK_FILE]
    build(images, table, tmp_path / "out")


@pytest.mark.parametrize("name", [".manifest.json.partial", ".00001.tar.partial", building.LOCK_FILE])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, images, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=f"out/{name}: cannot be written: Is a directory"):
        build(images, write_csv(tmp_path / "t.csv", rows()), tmp_path / "out")


def test_a_shard_has_a_sample_at_least(tmp_path, images, capsys):
    with pytest.raises(ConfigError, match="images_per_shard: expected at least 1, found 0"):
        Build(images, tmp_path / "t.csv", tmp_path / "out", images_per_shard=0)
    command = ["shards", "build", str(images), str(tmp_path / "t.csv"), str(tmp_path / "out")]
    assert main([*command, "--images-per-shard", "0"]) == 2
    assert "images_per_shard: expected at least 1, found 0" in capsys.readouterr().err


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path, images):
    (images / "text.jpg").write_text("no image")
    (images / "cut.png").write_bytes(encode_image(noise_picture(99, 99))[:2000])
    (tmp_path / "secret.png").write_bytes(encode_image(noise_picture(9, 9)))
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    bad = {
        "text.jpg": "undecodable image",
        "cut.png": "undecodable image",
        "gone.png": "missing image",
        "nul\0.png": "missing image",
        "../secret.png": "outside the folder",
        str(tmp_path / "secret.png"): "outside the folder",
        "link.png": "outside the folder",
        "0.pyd": "no image",
        "": "no image",
    }
    table = tmp_path / "t.jsonl"
    lines = [{"image": name, "caption": "a"} for name in [*bad, "0.png"]]
    lines += [{"image": None, "caption": "a"}]
    lines += [{"image": "1.png", "caption": None}, {"image": "4.png", "caption": []}]
    lines += [{"image": "0.png", "caption": " "}, {"image": "2.png", "caption": "\ud83d"}]
    lines += [{"image": "3.png", "caption": "x" * 30_000}]
    table.write_text("\n".join(map(json.dumps, lines)))
    manifest, faults = build(images, table, tmp_path / "out")
    assert manifest.samples == 1
    assert manifest.empty_captions == 2
    expected = [*bad.values(), "no image", "empty caption", "no caption", "undecodable caption"]
    expected.append("overlong caption")
    assert faults.counts == {cause: expected.count(cause) for cause in expected}
    assert all(not example.startswith(":") and "Errno" not in example for example in faults.examples.values())


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.txt", "", "expected a table called"),
        ("t.csv", "", "has no rows"),
        ("t.csv", "a,b\n1,2\n", "row 1: no column 'image'; there are a, b \\(--image-column and"),
        ("t.csv", "image,caption\na.png\n", "line 2: expected 2 columns"),
        ("t.csv", b"image,caption\na.png,\xff\n", "not UTF-8"),
        ("t.jsonl", "{", "line 1: not JSON"),
        ("t.jsonl", "[1]", "line 1: expected an object, found list"),
        ("t.parquet", "no parquet", "not readable as Parquet"),
        ("t.csv", "image,caption\na.png,x\n", "no image of it can be used; 1 skipped: missing image"),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error(tmp_path, images, name, text, said):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=said):
        build(images, tmp_path / name, tmp_path / "out")


def test_shards_of_another_build_are_left_alone(tmp_path, images):
    table = write_csv(tmp_path / "t.csv", rows())
    build(images, table, tmp_path / "out")
    with pytest.raises(DataError, match=r"shards of another build \(images_per_shard differ\)"):
        build(images, table, tmp_path / "out", images_per_shard=2)
    (tmp_path / "out" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="not readable as a manifest"):
        build(images, table, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds shards, and no manifest"):
        build(images, table, tmp_path / "out")


def test_the_command_builds_and_validates(tmp_path, images, capsys):
    table = write_csv(tmp_path / "t.csv", rows())
    out = str(tmp_path / "out")
    assert main(["shards", "build", str(images), str(table), out, "--images-per-shard", "4"]) == 0
    assert "7 samples, 2 shards" in capsys.readouterr().out
    assert main(["shards", "validate", out]) == 0
    assert "7 good samples, 0 faults, 2 shards" in capsys.readouterr().out
    assert main(["shards", "build", str(table), str(table), out]) == 2
    assert "expected a folder of images" in capsys.readouterr().err


def test_the_command_says_how_many_pictures_no_row_names(tmp_path, images, capsys):
    (images / "deep").mkdir()
    for name in ("deep/7.png", "deep/8.PNG", "notes.txt", "deep/9.png"):
        (images / name).write_bytes(b"not looked into")
    table = write_csv(tmp_path / "t.csv", [*rows(), ("./deep/7.png", "x")])
    for last in (["2 pictures"], []):
        assert main(["shards", "build", str(images), str(table), str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out.splitlines()[1:]
        assert said == [f"{count} of {images} in no row of the table" for count in last]
        for name in ("deep/8.PNG", "deep/9.png"):
            (images / name).unlink(missing_ok=True)


def test_a_manifest_from_before_empty_captions_were_counted_is_read(tmp_path, images):
    build(images, write_csv(tmp_path / "t.csv", rows()), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    record = json.loads(path.read_text())
    del record["empty_captions"]
    path.write_text(json.dumps(record))
    assert read_manifest(tmp_path / "out").empty_captions == 0
