"""A folder of images and a table of their captions -> shards and a manifest.

The bytes of the shards depend on the table, the images and the settings alone. A shard is written beside its
place and renamed into it, and then joins the manifest, which says that the build is not complete until all
have. A build that is run again makes what is not there as the manifest has it, and ends in the same bytes: so
it goes on where it was interrupted, and so a shard that was lost or damaged comes back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    """A new or empty folder, or one of the same build."""
    image_column: str = "image"
    """Holds an image's path within the folder."""
    caption_column: str = "caption"
    """Holds a caption, or a list of them."""
    images_per_shard: int = 1000
    """Images of the table to a shard."""


@dataclass(slots=True)
class _Image:
    path: str
    captions: list[str]
    """Those that say anything."""
    num_empty: int
    """Captions that do not."""
    columns: dict[str, Any]
    """The table's other columns, of the image's first row."""


def build_shards(build: Build, faults: Faults) -> Manifest:
    """Writes the shards that are not there yet.

    Args:
        build: what to make them from.
        faults: counts the images that are left out; those of shards that are there by cause alone.

    Raises:
        DataError: the table or the folder cannot be used, or holds shards of another build.
    """
    images = _images(build)
    manifest = _start(build)
    manifest.empty_captions = sum(image.num_empty for image in images)
    with tqdm(total=len(images), unit="images", disable=None) as bar:
        for number, first in enumerate(range(0, len(images), build.images_per_shard)):
            batch = images[first : first + build.images_per_shard]
            before = number < len(manifest.shards)
            if before and manifest.shards[number].is_in(build.out):
                faults.counts.update(manifest.shards[number].skipped)
            else:
                counted = faults.counts.copy()
                samples = list(_samples(build, batch, first, faults))
                skipped = dict(faults.counts - counted)
                lost = manifest.shards[number].sha256 if before else None
                path = build.out / f"{number:05d}.tar"
                manifest.shards[number : number + 1] = [_write(path, samples, len(batch), skipped, lost)]
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
        manifest = Manifest(built_from)
    if manifest.built_from != built_from:
        differing = [name for name, value in built_from.items() if manifest.built_from.get(name) != value]
        raise DataError(f"{build.out}: holds shards of another build ({', '.join(differing)} differ)")
    # One more may be there: a build can be ended between a shard and its place in the manifest.
    known = {f"{number:05d}.tar" for number in range(len(manifest.shards) + 1)}
    if others := [shard.name for shard in found if shard.name not in known]:
        raise DataError(f"{build.out}: holds {', '.join(others)}, which {FILE_NAME} does not have")
    manifest.complete = False
    manifest.write(build.out)
    return manifest


def _images(build: Build) -> list[_Image]:
    """The table's rows by image, in the order of their first rows."""
    images: dict[str | int, _Image] = {}  # by path, and those without one by row
    for number, row in enumerate(read_rows(build.table), start=1):
        for column in (build.image_column, build.caption_column):
            if column not in row:
                raise DataError(
                    f"{build.table}, row {number}: no column {column!r}; there are {', '.join(map(str, row))}"
                )
        path = row.pop(build.image_column)
        path = "" if path is None else str(path)
        captions = _captions(row.pop(build.caption_column))
        image = images.setdefault(path or number, _Image(path, [], 0, row))
        image.captions += [caption for caption in captions if caption]
        image.num_empty += captions.count("")
    if not images:
        raise DataError(f"{build.table}: has no rows")
    return list(images.values())


def _captions(value: Any) -> list[str]:
    """One a line of a .txt file is how shards hold captions, so a line break inside one becomes a space."""
    values = value if isinstance(value, list) else [value]
    return ["" if caption is None else " ".join(str(caption).split()) for caption in values]


def _samples(
    build: Build, images: Sequence[_Image], first: int, faults: Faults
) -> Iterator[Mapping[str, str | bytes]]:
    for number, image in enumerate(images, start=first):
        try:
            yield _sample(build.images, image, f"{number:09d}")
        except SampleError as error:
            faults.add(image.path or f"image {number} of the table", error)


def _sample(folder: Path, image: _Image, key: str) -> Mapping[str, str | bytes]:
    """The image's own bytes, its captions, and all that the table says of it."""
    extension = Path(image.path).suffix.lower().removeprefix(".")
    if extension not in IMAGE_EXTENSIONS:
        if not image.path:
            raise SampleError("no image", "its row names none")
        raise SampleError("no image", f"{image.path}: expected one of .{', .'.join(IMAGE_EXTENSIONS)}")
    if not image.captions:
        cause = "empty caption" if image.num_empty else "no caption"
        raise SampleError(cause, f"{image.path}: none with anything in it in any of its rows")
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
    except OSError as error:
        raise SampleError("missing image", f"{name}: {error.strerror} (in {folder})") from error
    except ValueError as error:  # a zero byte in the name
        raise SampleError("missing image", f"{name!r}: {error}") from error


def _write(
    path: Path,
    samples: Sequence[Mapping[str, str | bytes]],
    rows: int,
    skipped: dict[str, int],
    lost: str | None,
) -> ShardRecord:
    """Writes a shard; in place of a lost one, whose checksum is known, no other."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_shard(partial, samples)
        size, checksum = partial.stat().st_size, sha256_of(partial)
        record = ShardRecord(path.name, len(samples), size, checksum, rows, skipped)
        if lost not in (None, checksum):
            partial.unlink()
            raise DataError(
                f"{path}: lost or damaged, and cannot be made again as it was: its images have changed "
                "since; choose another folder"
            )
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    return record
