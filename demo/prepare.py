"""Makes the demo's two shards from the stamps of Tux Paint.

In: the unpacked Debian package `tuxpaint-stamps-default`:

    apt-get download tuxpaint-stamps-default
    dpkg -x tuxpaint-stamps-default_*.deb stamps
    python demo/prepare.py stamps

Out, beside this file: stamps-train.tar and stamps-test.tar, and the categories in classnames.txt.
A sample is key.png (RGBA, at most LONG_SIDE pixels a side), key.txt (one English caption), key.cls (the
category's line in classnames.txt, from 0) and key.json, whose `captions` are the caption and the category:
a model that trains on both can tell categories apart by their names.

The same package and the same Pillow give the same bytes. No caption is in both shards: a caption's hash
decides its side, whatever its case and punctuation, and no picture is in the shards twice.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

LONG_SIDE = 152
COLOUR_BITS = 6
TEST_SHARE = 0.12
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Stamp:
    file: str
    caption: str
    image: Image.Image

    @property
    def key(self) -> str:
        """The file's path without its dots, since a shard's sample ends at the first dot of a name."""
        return re.sub(r"[^a-z0-9-]+", "_", self.file.removesuffix(".png").lower())

    @property
    def category(self) -> str:
        folder = self.file.partition("/")[0]
        return {"naturalforces": "natural forces"}.get(folder, folder)

    @property
    def is_test(self) -> bool:
        words = " ".join(re.findall(r"\w+", self.caption.lower()))
        return int(hashlib.sha256(words.encode()).hexdigest(), 16) / 2**256 < TEST_SHARE


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the demo's shards.")
    parser.add_argument("package", type=Path, help="folder that the Debian package was unpacked in")
    folder = parser.parse_args().package / "usr/share/tuxpaint/stamps"
    if not folder.is_dir():
        parser.error(f"{folder}: no such folder; unpack the package with dpkg -x first")
    stamps = list(read_stamps(folder))
    categories = sorted({stamp.category for stamp in stamps})
    (FOLDER / "classnames.txt").write_text("".join(f"{category}\n" for category in categories))
    for split in ("train", "test"):
        chosen = [stamp for stamp in stamps if stamp.is_test == (split == "test")]
        path = FOLDER / f"stamps-{split}.tar"
        write_shard(path, chosen, categories)
        print(f"{path}: {len(chosen)} stamps, {path.stat().st_size / 1e6:.1f} MB")


def read_stamps(folder: Path) -> Iterator[Stamp]:
    """Every raster stamp that has a caption, once, in the order of the paths."""
    seen: set[str] = set()
    for path in sorted(folder.rglob("*.png")):
        caption = read_caption(path.with_suffix(".txt"))
        image = shrink(Image.open(path).convert("RGBA"))
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        if caption and digest not in seen:
            seen.add(digest)
            yield Stamp(file=str(path.relative_to(folder)), caption=caption, image=image)


def read_caption(path: Path) -> str:
    """The first line is English; lines such as `fr.utf8=Une grenouille.` follow it."""
    if not path.exists():
        return ""
    first = path.read_bytes().decode("utf-8", "replace").partition("\n")[0].strip()
    return "" if re.match(r"\w+\.utf8=", first) else first


def shrink(image: Image.Image) -> Image.Image:
    """Fewer pixels, fewer bits a colour, and one colour wherever nothing is seen: small files."""
    scale = LONG_SIDE / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.array(image)
    shift = 8 - COLOUR_BITS
    colour = pixels[..., :3] >> shift
    # The high bits fill the low ones, so that black stays 0 and white stays 255.
    pixels[..., :3] = colour << shift | colour >> (COLOUR_BITS - shift)
    pixels[pixels[..., 3] == 0] = (255, 255, 255, 0)
    return Image.fromarray(pixels)


def write_shard(path: Path, stamps: list[Stamp], categories: list[str]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
        for stamp in stamps:
            for extension, data in members(stamp, categories).items():
                member = tarfile.TarInfo(f"{stamp.key}.{extension}")  # its time is 0, its owner nobody
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


def members(stamp: Stamp, categories: list[str]) -> dict[str, bytes]:
    """The files of one sample by their extension."""
    png = io.BytesIO()
    stamp.image.save(png, "PNG", optimize=True)
    about = {
        "captions": [stamp.caption, stamp.category],
        "category": stamp.category,
        "width": stamp.image.width,
        "height": stamp.image.height,
        "source": "tuxpaint-stamps-default",
        "file": stamp.file,
    }
    return {
        "png": png.getvalue(),
        "txt": f"{stamp.caption}\n".encode(),
        "cls": str(categories.index(stamp.category)).encode(),
        "json": json.dumps(about, ensure_ascii=False).encode(),
    }


if __name__ == "__main__":
    main()
