"""A folder of images and a table of their captions -> shards and a manifest.

The bytes of the shards depend on the table, the images and the settings alone. A shard is written beside its
place and renamed into it, and then joins the manifest, which says that the build is not complete until all
have. A build that is run again makes what is not there as the manifest has it, and ends in the same bytes: so
it goes on where it was interrupted, and so a shard that was lost or damaged comes back.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from navit_clip.data.faults import Faults
from navit_clip.data.images import EncodedImage
from navit_clip.data.samples import IMAGE_EXTENSIONS, MAX_CAPTION_LENGTH
from navit_clip.data.shards import write_shard
from navit_clip.data.tar_index import MAX_BYTES
from navit_clip.errors import ConfigError, DataError, SampleError
from navit_clip.file_lock import locked
from navit_clip.shards.caption_table import read_rows
from navit_clip.shards.manifest import FILE_NAME, Manifest, ShardRecord, read_manifest, sha256_of

LOCK_FILE = ".build.lock"
"""Held while a folder is built."""


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
    """Good ones; the last shard may have fewer."""

    def __post_init__(self):
        if self.images_per_shard < 1:
            raise ConfigError(f"images_per_shard: expected at least 1, found {self.images_per_shard}")


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
        DataError: the table or the folder cannot be used, or the folder holds shards of another build, or
            another build is at work in it.
    """
    images = _images(build)
    with _alone_in(build.out), tqdm(total=len(images), unit="images", disable=None) as bar:
        manifest = _start(build)
        manifest.empty_captions = sum(image.num_empty for image in images)
        done = 0
        for known in manifest.shards:
            if not known.is_in(build.out):
                _make_again(build, known, images, done)
            faults.counts.update(known.skipped)
            done += known.rows
            bar.update(known.rows)
        while done < len(images):
            rows = _add_shard(build, manifest, images, done, faults)
            manifest.write(build.out)
            done += rows
            bar.update(rows)
        if not manifest.samples:
            raise DataError(f"{build.table}: no image of it can be used; {faults.summary()}")
        manifest.complete = True
        manifest.write(build.out)
    return manifest


def count_unnamed(build: Build) -> int:
    """How many pictures of the folder no row of the table names."""
    named = {os.path.normpath(image.path) for image in _images(build)}
    files = (Path(folder, name) for folder, _, names in os.walk(build.images) for name in names)
    pictures = (file for file in files if _extension(file) in IMAGE_EXTENSIONS)
    return sum(str(picture.relative_to(build.images)) not in named for picture in pictures)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """A folder for this build alone; what goes wrong with its files is the user's to hear."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / LOCK_FILE, wait=False):
            yield
    except BlockingIOError as error:
        raise DataError(f"{out}: another build is at work in it") from error
    except OSError as error:
        raise DataError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from error


def _start(build: Build) -> Manifest:
    """The manifest of what is there already, or an empty one."""
    built_from: dict[str, str | int] = {
        "table_sha256": sha256_of(build.table),
        "image_column": build.image_column,
        "caption_column": build.caption_column,
        "images_per_shard": build.images_per_shard,
    }
    found = sorted(build.out.glob("*.tar"))
    manifest = read_manifest(build.out)
    if manifest is None:
        if found:
            raise DataError(f"{build.out}: holds shards, and no {FILE_NAME}; choose another folder")
        manifest = Manifest(built_from)
    if manifest.built_from != built_from:
        differing = [name for name, value in built_from.items() if manifest.built_from.get(name) != value]
        raise DataError(f"{build.out}: holds shards of another build ({', '.join(differing)} differ)")
    # One more may be there: a build can be ended between a shard and its place in the manifest.
    known = {_name(number) for number in range(len(manifest.shards) + 1)}
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
                    f"{build.table}, row {number}: no column {column!r}; there are "
                    f"{', '.join(map(str, row))} (--image-column and --caption-column name others)"
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


def _make_again(build: Build, lost: ShardRecord, images: Sequence[_Image], first: int) -> None:
    """Makes a shard that is lost or damaged, which begins with the table's image `first`, and no other."""
    samples, _ = _take(build, images[: first + lost.rows], first, Faults())
    path = build.out / lost.name
    partial = _write(path, samples)
    if sha256_of(partial) != lost.sha256:
        partial.unlink()
        raise DataError(
            f"{path}: lost or damaged, and cannot be made again as it was: its images have changed "
            "since; choose another folder"
        )
    partial.replace(path)


def _add_shard(build: Build, manifest: Manifest, images: Sequence[_Image], first: int, faults: Faults) -> int:
    """Makes the next shard, which begins with the table's image `first`; of how many images it is."""
    before = faults.counts.copy()
    samples, rows = _take(build, images, first, faults)
    skipped = dict(faults.counts - before)
    if samples:
        path = build.out / _name(len(manifest.shards))
        partial = _write(path, samples)
        size, checksum = partial.stat().st_size, sha256_of(partial)
        partial.replace(path)
        manifest.shards.append(ShardRecord(path.name, len(samples), size, checksum, rows, skipped))
    elif manifest.shards:  # The table ends with bad images: they join the last shard's.
        last = manifest.shards[-1]
        skipped = dict(Counter(last.skipped) + Counter(skipped))
        manifest.shards[-1] = replace(last, rows=last.rows + rows, skipped=skipped)
    return rows


def _name(number: int) -> str:
    return f"{number:05d}.tar"


_Sample = Mapping[str, str | bytes]


def _take(build: Build, images: Sequence[_Image], first: int, faults: Faults) -> tuple[list[_Sample], int]:
    """The samples of one shard, and how many images they are of, the bad ones among them."""
    samples: list[_Sample] = []
    for number in range(first, len(images)):
        if len(samples) == build.images_per_shard:
            return samples, number - first
        image = images[number]
        try:
            samples.append(_sample(build.images, image, f"{number:09d}"))
        except SampleError as error:
            faults.add(image.path or f"image {number} of the table", error)
    return samples, len(images) - first


def _sample(folder: Path, image: _Image, key: str) -> _Sample:
    """The image's own bytes, its captions, and all that the table says of it."""
    extension = _extension(Path(image.path))
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
    encoded.decode()  # a header may be whole, and the picture behind it cut off
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


def _extension(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


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


def _write(path: Path, samples: Sequence[_Sample]) -> Path:
    """Writes a shard beside its place."""
    partial = path.with_name(f".{path.name}.partial")
    write_shard(partial, samples)
    return partial
