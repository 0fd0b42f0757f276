"""Real tars and real encoded pictures, made in place, for tests of anything that reads data."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from navit_clip.batch import Batch, lengths_of
from navit_clip.data.shards import write_shard
from navit_clip.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "draws_of",
    "encode_image",
    "noise_picture",
    "pair",
    "pairs_of",
    "small_tokenizer",
    "solid_picture",
    "striped_picture",
    "write_pairs",
    "write_shard",
    "write_tar",
]

SIZES = ((32, 32), (48, 20), (17, 61), (90, 30), (64, 40), (25, 33), (120, 15))


def solid_picture(height: int, width: int, color: tuple[int, int, int] = (200, 30, 60)) -> np.ndarray:
    """One colour everywhere, uint8 [height, width, 3]."""
    return np.full((height, width, 3), color, dtype=np.uint8)


def striped_picture(height: int, width: int, period: int = 8) -> np.ndarray:
    """Black and white columns of `period` / 2 pixels each."""
    dark = np.arange(width) % period < period // 2
    return np.broadcast_to(np.where(dark, 0, 255)[None, :, None], (height, width, 3)).astype(np.uint8)


def noise_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Independent uniform bytes."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode_image(picture: np.ndarray | Image.Image, format: str = "png", **options) -> bytes:
    """Encodes an array or a Pillow image; the format is an extension (png, jpg, webp, gif, bmp, tif)."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    names = {"jpg": "JPEG", "tif": "TIFF"}
    buffer = io.BytesIO()
    image.save(buffer, names.get(format.lower(), format.upper()), **options)
    return buffer.getvalue()


def pair(key: str, number: int, caption: str | None = None) -> dict[str, str | bytes]:
    """A good sample for `write_shard`: a noise PNG of one of seven sizes, a caption, a label in 0..9."""
    height, width = SIZES[number % len(SIZES)]
    return {
        "__key__": key,
        "png": encode_image(noise_picture(height, width, seed=number)),
        "txt": f"picture number {number}" if caption is None else caption,
        "cls": str(number % 10),
    }


def write_pairs(folder: Path, sizes: Iterable[int], prefix: str = "shard") -> list[str]:
    """Writes one shard of good samples for each size, numbered throughout; returns their paths."""
    paths, number = [], 0
    for shard, size in enumerate(sizes):
        path = folder / f"{prefix}-{shard:03d}.tar"
        write_shard(path, [pair(f"sample{number + i:05d}", number + i) for i in range(size)])
        paths.append(str(path))
        number += size
    return paths


def draws_of(batch: Batch) -> Iterator[tuple[str, bytes]]:
    """(key, a digest of all that was drawn for it) of each pair."""
    images, captions = batch.images, batch.captions
    parts = (
        images.grid.split(1),
        images.position.split(lengths_of(images.offsets)),
        images.patches.split(lengths_of(images.offsets)),
        captions.ids.split(lengths_of(captions.offsets)),
    )
    for key, *drawn in zip(batch.keys, *parts, strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for part in drawn:
            digest.update(part.numpy().tobytes())
        yield key, digest.digest()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes members as they are, whatever their names and order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pairs_of(batch: Batch) -> Iterator[tuple[str, bytes]]:
    """(key, everything that was drawn for it) of each pair, the draw as bytes."""
    images, captions = batch.images, batch.captions
    pixels = images.patches.split(lengths_of(images.offsets))
    positions = images.position.split(lengths_of(images.offsets))
    ids = captions.ids.split(lengths_of(captions.offsets))
    for i, key in enumerate(batch.keys):
        drawn = (images.grid[i], positions[i], pixels[i], ids[i])
        yield key, b"|".join(part.numpy().tobytes() for part in drawn)


@lru_cache(maxsize=1)
def small_tokenizer() -> Tokenizer:
    """A tokenizer that knows the captions of `pair`."""
    captions = [f"picture number {number}, a photo of it" for number in range(50)]
    return train_tokenizer(captions, vocab_size=512)
