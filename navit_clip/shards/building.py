"""A folder of images and a table of their captions -> shards and a manifest.

The bytes of the shards depend on the table, the images and the settings alone. A shard is written beside its
place and renamed into it, and then joins the manifest; a build that was interrupted goes on after the last
one there, and ends in the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from navit_clip.data.faults import Faults
from navit_clip.data.images import EncodedImage
from navit_clip.data.samples import IMAGE_EXTENSIONS, MAX_CAPTION_LENGTH
from navit_clip.data.shards import write_shard
from navit_clip.data.tar_index import MAX_BYTES
from navit_clip.errors import DataError, SampleError
from navit_clip.shards.caption_table import read_rows
from navit_clip.shards.manifest import FILE_NAME, Manifest, ShardRecord, read_manifest, sha256_of


@dataclass(frozen=True, slots=True)
class Build:
    """What to make shards from, and how."""

    images: Path
    """The folder that the table's paths start from."""
    table: Path
    """CSV, TSV, JSON lines or Parquet; rows of one image give it several captions."""
    out: Path
    """A new or empty folder, or one that an interrupted build has left."""
    image_column: str = "image"
    """Holds an image's path within the folder."""
    caption_column: str = "caption"
    """Holds a caption, or a list of them."""
    images_per_shard: int = 1000
    """Images of the table to a shard."""


@dataclass(frozen=True, slots=True)
class _Image:
    path: str
    captions: list[str]
    columns: dict[str, Any]
    """The table's other columns, of the image's first row."""


def build_shards(build: Build, faults: Faults) -> Manifest:
    """Writes the shards, going on where an earlier build was interrupted.

    Args:
        build: what to make them from.
        faults: counts the images that are left out; those of an earlier part by cause alone.

    Raises:
        DataError: the table or the folder cannot be used, or holds shards of another build.
    """
    images = _images(build)
    manifest = _start(build)
    faults.counts.update(manifest.skipped)
    done = sum(shard.rows for shard in manifest.shards)
    with tqdm(total=len(images), initial=done, unit="images", disable=None) as bar:
        remaining = iter(images[done:])
        for number in range(len(manifest.shards), -(-len(images) // build.images_per_shard)):
            batch = list(islice(remaining, build.images_per_shard))
            first = number * build.images_per_shard
            samples = list(_samples(build, batch, first, faults))
            manifest.shards.append(_write(build.out / f"{number:05d}.tar", samples, len(batch)))
            manifest.skipped = dict(faults.counts)
            manifest.write(build.out)
            bar.update(len(batch))
    if not manifest.samples:
        raise DataError(f"{build.table}: no image of it can be used; {faults.summary()}")
    manifest.complete = True
    manifest.write(build.out)
    return manifest


def _start(build: Build) -> Manifest:
    """The manifest of what is there already, or an empty one."""
    built_from: dict[str, str | int] = {
        "table_sha256": sha256_of(build.table),
        "image_column": build.image_column,
        "caption_column": build.caption_column,
        "images_per_shard": build.images_per_shard,
    }
    try:
        build.out.mkdir(parents=True, exist_ok=True)
        found = sorted(build.out.glob("*.tar"))
    except OSError as error:
        raise DataError(f"{build.out}: cannot be written: {error.strerror}") from error
    manifest = read_manifest(build.out)
    if manifest is None:
        if found:
            raise DataError(f"{build.out}: holds shards, and no {FILE_NAME}; choose another folder")
        return Manifest(built_from)
    if manifest.built_from != built_from:
        differing = [name for name, value in built_from.items() if manifest.built_from.get(name) != value]
        raise DataError(f"{build.out}: holds shards of another build ({', '.join(differing)} differ)")
    for shard in manifest.shards:
        path = build.out / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise DataError(f"{path}: not as {FILE_NAME} has it; take the folder away and build again")
    return manifest


def _images(build: Build) -> list[_Image]:
    """The table's rows by image, in the order of their first rows."""
    images: dict[str, _Image] = {}
    for number, row in enumerate(read_rows(build.table), start=1):
        for column in (build.image_column, build.caption_column):
            if column not in row:
                raise DataError(
                    f"{build.table}, row {number}: no column {column!r}; there are {', '.join(map(str, row))}"
                )
        path = str(row.pop(build.image_column))
        captions = _captions(row.pop(build.caption_column))
        if path in images:
            images[path].captions.extend(captions)
        else:
            images[path] = _Image(path, captions, row)
    if not images:
        raise DataError(f"{build.table}: has no rows")
    return list(images.values())


def _captions(value: Any) -> list[str]:
    """One a line of a .txt file is how shards hold captions, so a line break inside one becomes a space."""
    values = value if isinstance(value, list) else [value]
    lines = (" ".join(str(caption).split()) for caption in values if caption is not None)
    return [line for line in lines if line]


def _samples(
    build: Build, images: Sequence[_Image], first: int, faults: Faults
) -> Iterator[Mapping[str, str | bytes]]:
    for number, image in enumerate(images, start=first):
        try:
            yield _sample(build.images, image, f"{number:09d}")
        except SampleError as error:
            faults.add(image.path, error)


def _sample(folder: Path, image: _Image, key: str) -> Mapping[str, str | bytes]:
    """The image's own bytes, its captions, and all that the table says of it."""
    extension = Path(image.path).suffix.lower().removeprefix(".")
    if extension not in IMAGE_EXTENSIONS:
        raise SampleError("no image", f"{image.path}: expected one of .{', .'.join(IMAGE_EXTENSIONS)}")
    if not image.captions:
        raise SampleError("no caption", f"{image.path}: none in any of its rows")
    if max(map(len, image.captions)) > MAX_CAPTION_LENGTH:
        raise SampleError("overlong caption", f"{image.path}: over {MAX_CAPTION_LENGTH} characters")
    data = _read(folder, image.path)
    encoded = EncodedImage(data)
    record = {
        **image.columns,
        "path": image.path,
        "captions": image.captions,
        "width": encoded.width,
        "height": encoded.height,
    }
    try:
        text = "\n".join(image.captions).encode()
    except UnicodeEncodeError as error:
        raise SampleError("undecodable caption", f"{image.path}: {error}") from error
    return {"__key__": key, extension: data, "txt": text, "json": json.dumps(record, default=str)}


def _read(folder: Path, name: str) -> bytes:
    """The bytes of an image that lies within the folder, and nowhere else."""
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise SampleError("outside the folder", f"{name}: leads out of {folder}")
        if path.stat().st_size > MAX_BYTES:
            raise SampleError("too many bytes", f"{name}: {path.stat().st_size}, over {MAX_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise SampleError("missing image", f"{name}: {error}") from error


def _write(path: Path, samples: Sequence[Mapping[str, str | bytes]], rows: int) -> ShardRecord:
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_shard(partial, samples)
        record = ShardRecord(path.name, len(samples), partial.stat().st_size, sha256_of(partial), rows)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    return record
