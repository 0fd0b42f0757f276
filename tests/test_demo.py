"""The demo's committed shards are whole, small, and disjoint; and they are what `demo/prepare.py` makes."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

MAX_BYTES = 12_000_000


def read_shard(path: Path) -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as shard:
        for member in shard:
            key, _, extension = member.name.partition(".")
            file = shard.extractfile(member)
            assert file is not None
            samples.setdefault(key, {})[extension] = file.read()
    return samples


@pytest.fixture(scope="module")
def shards(root) -> dict[str, dict[str, dict[str, bytes]]]:
    return {split: read_shard(root / "demo" / f"stamps-{split}.tar") for split in ("train", "test")}


def captions(samples: dict[str, dict[str, bytes]]) -> list[str]:
    return [sample["txt"].decode().strip() for sample in samples.values()]


def test_the_shards_are_small(root):
    assert sum(path.stat().st_size for path in (root / "demo").glob("*.tar")) <= MAX_BYTES


def test_the_readme_counts_the_samples(root, shards):
    rows = re.findall(r"`stamps-(\w+)\.tar` \| (\d+)", (root / "demo" / "README.md").read_text())
    assert {split: int(count) for split, count in rows} == {
        split: len(samples) for split, samples in shards.items()
    }


def test_train_and_test_share_no_caption(shards):
    train, test = (set(map(str.lower, captions(shards[split]))) for split in ("train", "test"))
    assert not train & test


def test_every_sample_is_whole(root, shards):
    classnames = (root / "demo" / "classnames.txt").read_text().splitlines()
    for key, sample in {**shards["train"], **shards["test"]}.items():
        assert sorted(sample) == ["cls", "json", "png", "txt"], key
        about = json.loads(sample["json"])
        image = Image.open(io.BytesIO(sample["png"]))
        image.load()
        assert (image.mode, image.size) == ("RGBA", (about["width"], about["height"])), key
        assert about["category"] == classnames[int(sample["cls"])], key
        assert about["captions"] == [sample["txt"].decode().strip(), about["category"]], key


def test_test_has_the_common_categories_of_train(shards):
    counts = {
        split: Counter(json.loads(sample["json"])["category"] for sample in samples.values())
        for split, samples in shards.items()
    }
    assert {category for category, count in counts["train"].items() if count >= 20} <= set(counts["test"])


def test_prepare_makes_shards_from_a_package(tmp_path, root):
    """A package of three stamps: one too large, one seen before, one without a caption."""
    script = tmp_path / "demo" / "prepare.py"
    script.parent.mkdir()
    script.write_text((root / "demo" / "prepare.py").read_text())
    folder = tmp_path / "package/usr/share/tuxpaint/stamps/animals"
    folder.mkdir(parents=True)
    frog = Image.new("RGBA", (400, 100), (0, 255, 0, 255))
    for name in ("Frog", "frog2", "toad"):
        frog.save(folder / f"{name}.png")
    for name in ("Frog", "frog2"):
        (folder / f"{name}.txt").write_text("A frog.\nfr.utf8=Une grenouille.\n")

    def run() -> dict[str, bytes]:
        subprocess.run([sys.executable, script, tmp_path / "package"], check=True, capture_output=True)
        return {path.name: path.read_bytes() for path in script.parent.glob("*.tar")}

    first = run()
    assert first == run()
    samples = {
        **read_shard(script.parent / "stamps-train.tar"),
        **read_shard(script.parent / "stamps-test.tar"),
    }
    assert list(samples) == ["animals_frog"]
    assert samples["animals_frog"]["txt"] == b"A frog.\n"
    assert Image.open(io.BytesIO(samples["animals_frog"]["png"])).size == (152, 38)
