"""What is embedded, by number: encoded images of shards or a folder, captions of shards or a text file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from navit_clip.data.faults import Faults
from navit_clip.data.remote import RemoteConfig, is_remote
from navit_clip.data.samples import IMAGE_EXTENSIONS, read_sample, read_samples
from navit_clip.data.shards import Shard, find_shards
from navit_clip.data.tar_index import OpenShards
from navit_clip.errors import DataError


class ImageSource:
    """Encoded images; picklable, since worker processes read from it.

    Args:
        source: a folder that holds images, at any depth; or patterns of shards.
        remote: how to fetch shards from elsewhere.

    Raises:
        DataError: nothing is there.
    """

    def __init__(self, source: Sequence[str], remote: RemoteConfig | None = None):
        self._arguments = (source, remote)
        self._files = _image_files(source)
        self._shards = [] if self._files else _shards(source, remote)
        self._open = OpenShards(self._shards)
        self._places: list[tuple[int, int]] = []
        self.keys: list[str] = [key for key, _ in self._files]
        for number in range(len(self._shards)):
            shard = self._open[number]
            self._places += [(number, index) for index in range(len(shard))]
            self.keys += [shard.key(index) for index in range(len(shard))]

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files do not cross into worker processes; each opens its own.
        return (ImageSource, self._arguments)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> bytes:
        """Raises SampleError where this one is bad, DataError where a file cannot be read: that may pass."""
        if self._files:
            _, path = self._files[index]
            try:
                return path.read_bytes()
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        number, place = self._places[index]
        return read_sample(self._open[number], place, caption_key=None, labels=False).image

    def digest(self) -> str:
        """A hash of the keys; not of the pictures, which are read once only."""
        return _digest(self.keys)


class CaptionSource:
    """Captions, all of them held in memory.

    Args:
        source: one text file with a caption a line, or patterns of shards.
        caption_key: where shards have captions.
        remote: how to fetch shards from elsewhere.

    Raises:
        DataError: nothing is there.
    """

    def __init__(self, source: Sequence[str], caption_key: str, remote: RemoteConfig | None = None):
        self.keys: list[str] = []
        self._captions: list[str] = []
        self.faults = Faults()
        """Samples of shards whose captions cannot be read."""
        first = Path(source[0])
        if len(source) == 1 and first.is_file() and first.suffix != ".tar":
            self._read_lines(first)
            return
        if len(source) == 1 and first.suffix == ".txt" and not is_remote(source[0]):
            raise DataError(f"{first}: no such file (expected a text file with a caption a line, or shards)")
        if texts := [name for name in source if Path(name).is_file() and Path(name).suffix == ".txt"]:
            raise DataError(
                f"{texts[0]}: expected one text file alone, or shards, found {len(source)} sources"
            )
        for sample in read_samples(source, caption_key, faults=self.faults, remote=remote):
            for number, caption in enumerate(sample.captions):
                self.keys.append(f"{sample.key}#{number}")
                self._captions.append(caption)
        if not self.keys:
            raise DataError(f"{', '.join(source)}: there is no caption in it")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> str:
        return self._captions[index]

    def digest(self) -> str:
        """A hash of keys and captions."""
        return _digest([*self.keys, *self._captions])

    def _read_lines(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")  # as editors and wc count them
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: expected a text file in UTF-8, found bytes that are not at byte {error.start}"
            ) from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self.keys.append(str(number))
                self._captions.append(line.strip())
        if not self.keys:
            raise DataError(f"{path}: there is no caption in it")


def _digest(lines: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _shards(source: Sequence[str], remote: RemoteConfig | None) -> list[Shard]:
    """Raises DataError where a folder has neither images nor shards, or a file is none."""
    for name in source:
        if Path(name).is_file() and Path(name).suffix != ".tar":
            raise DataError(f"{name}: expected a folder of images, or shards (tar), found another file")
    if len(source) == 1 and Path(source[0]).is_dir() and not any(Path(source[0]).glob("*.tar")):
        kinds = ", ".join(IMAGE_EXTENSIONS)
        raise DataError(f"{source[0]}: expected images ({kinds}) or shards (tar) in this folder, found none")
    return find_shards(source, remote)


def _image_files(source: Sequence[str]) -> list[tuple[str, Path]]:
    """Keys and paths, where the source is a folder with images in it."""
    folder = Path(source[0])
    if len(source) > 1 or not folder.is_dir():
        return []
    files = (path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS)
    found = sorted((path.relative_to(folder).as_posix(), path) for path in files)
    if found and (shards := sorted(folder.glob("*.tar"))):
        raise DataError(
            f"{folder}: expected images or shards, found both ({found[0][0]} and {shards[0].name}); "
            "name the shards by a pattern, or move one kind elsewhere"
        )
    for key, _ in found:
        if any("\ud800" <= letter <= "\udfff" for letter in key):
            raise DataError(f"{folder}: expected names of files in UTF-8, found {key!a}")
    return found
