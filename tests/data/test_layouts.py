"""Shards laid out as the tools of the field lay them out are trained on and read as they are."""

import json
from collections import Counter

import pytest

from navit_clip.batch import caption_identity
from navit_clip.data.config import DataConfig
from navit_clip.data.loader import TrainLoader
from navit_clip.data.resolution import ResolutionConfig
from navit_clip.data.samples import read_samples
from tests.data_builders import encode_image, noise_picture, small_tokenizer, write_tar


def picture(number, format):
    return encode_image(noise_picture(20 + number, 30, seed=number), format)


def identities(folder, epochs=3, **changes):
    """The captions trained on, by key."""
    config = DataConfig(
        shards=[str(folder)],
        resolution=ResolutionConfig(min_side=32, max_side=48),
        tokens_per_batch=64,
        lookahead=1,
        num_workers=0,
        **changes,
    )
    loader = TrainLoader(config, small_tokenizer(), 16, 16, seed=0)
    found = {}
    for batch in loader:
        for key, identity in zip(batch.keys, batch.captions.identity.tolist(), strict=True):
            found.setdefault(key, Counter())[identity] += 1
        if loader.epoch >= epochs:
            break
    assert not loader.counts["skipped"]
    return found


@pytest.fixture
def img2dataset(tmp_path):
    """As img2dataset writes --output_format webdataset: failed downloads are in the parquet alone."""
    for shard in range(2):
        members = []
        for number in range(4):
            key = f"{shard:05d}{number:04d}"
            record = {
                "caption": f"caption {key}",
                "url": f"https://example.org/{key}.jpg",
                "key": key,
                "status": "success",
                "error_message": None,
                "width": 30,
                "height": 20 + number,
                "original_width": 300,
                "original_height": 200,
                "exif": "{}",
                "sha256": "0" * 64,
            }
            members += [
                (f"{key}.jpg", picture(number, "jpg")),
                (f"{key}.json", json.dumps(record).encode()),
                (f"{key}.txt", record["caption"].encode()),
            ]
        write_tar(tmp_path / f"{shard:05d}.tar", members)
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    return tmp_path


@pytest.mark.parametrize("caption_key", ["txt", "json.caption"])
def test_img2dataset(img2dataset, caption_key):
    keys = [f"{shard:05d}{number:04d}" for shard in range(2) for number in range(4)]
    samples = list(read_samples([str(img2dataset)], caption_key))
    assert [sample.captions for sample in samples] == [(f"caption {key}",) for key in keys]
    assert identities(img2dataset, caption_key=caption_key).keys() == {f"{key[:5]}/{key}" for key in keys}


def test_datacomp(tmp_path):
    """Its downloader is img2dataset's, with the scores and the uid of the metadata in each json."""
    members = []
    for number in range(4):
        key = f"00000042{number:04d}"
        record = {
            "uid": f"{number:032x}",
            "key": key,
            "caption": "from the web",
            "text": "from the web",
            "clip_b32_similarity_score": 0.3,
            "face_bboxes": [[0.1, 0.1, 0.2, 0.2]],
            "original_width": 30,
            "original_height": 20 + number,
        }
        members += [
            (f"./{key}.jpg", picture(number, "jpg")),
            (f"./{key}.json", json.dumps(record).encode()),
            (f"./{key}.txt", b"from the web"),
        ]
    write_tar(tmp_path / "00000042.tar", members)
    assert len(identities(tmp_path, caption_key="json.text")) == 4
    assert [sample.captions for sample in read_samples([str(tmp_path)], "txt")] == [("from the web",)] * 4


def test_clip_benchmark(tmp_path):
    """Names of classes and templates lie beside the splits; samples have a class, or captions one a line."""
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "nshards.txt").write_text("2")
        for shard in range(2):
            members = []
            for number in range(2 * shard, 2 * shard + 2):
                key = f"s{number:07d}"
                members += [
                    (f"{key}.cls", str(number % 2).encode()),
                    (f"{key}.txt", f"first of {number}\nsecond of {number}".encode()),
                    (f"{key}.webp", picture(number, "webp")),
                ]
            write_tar(tmp_path / split / f"{shard}.tar", members)
    samples = list(read_samples([str(tmp_path / "test")], "txt", labels=True))
    assert [sample.label for sample in samples] == [0, 1, 0, 1]
    assert samples[3].captions == ("first of 3", "second of 3")
    drawn = identities(tmp_path / "train", epochs=20)
    for number in range(4):
        of_sample = drawn[f"{number // 2}/s{number:07d}"]
        assert set(of_sample) == {caption_identity(f"{which} of {number}") for which in ("first", "second")}


def test_captions_of_several_places_come_by_their_chances(tmp_path):
    members = []
    for number in range(20):
        record = {"recaption": "long", "translations": {"de": "ein Bild", "es": "una foto"}}
        members += [
            (f"{number}.png", picture(number, "png")),
            (f"{number}.json", json.dumps(record).encode()),
            (f"{number}.txt", b"web"),
        ]
    write_tar(tmp_path / "s.tar", members)
    drawn = sum(
        identities(tmp_path, 20, other_captions={"json.recaption": 2.0, "json.translations": 1.0}).values(),
        Counter(),
    )
    expected = {"web": 1 / 4, "long": 1 / 2, "ein Bild": 1 / 8, "una foto": 1 / 8}
    shares = {text: drawn[caption_identity(text)] / drawn.total() for text in expected}
    assert shares == pytest.approx(expected, abs=0.07)
    assert sum(shares.values()) == pytest.approx(1)
