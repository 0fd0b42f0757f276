"""Samples by number, from shards and from files: what `eval.image_packs.Samples` asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from eval.image_packs import Samples
from navit_clip.batch import Sample
from navit_clip.config import nearest
from navit_clip.data.remote import RemoteConfig
from navit_clip.data.samples import IMAGE_EXTENSIONS, check_caption_key, read_captions, read_sample
from navit_clip.data.shards import find_shards
from navit_clip.data.tar_index import OpenShard
from navit_clip.errors import DataError, SampleError


class ShardSamples:
    """Samples of shards.

    Args:
        shards: patterns, see `find_shards`.
        caption_key: where captions are, "txt" or "json.KEY"; None reads none.
        labels: whether a sample needs a label in its .cls.
        remote: how to fetch shards from elsewhere.
    """

    def __init__(
        self,
        shards: Sequence[str],
        caption_key: str | None,
        labels: bool,
        remote: RemoteConfig | None = None,
    ):
        check_caption_key(caption_key)
        self._arguments = (shards, caption_key, labels, remote)
        opened = [OpenShard(shard) for shard in find_shards(shards, remote)]
        self._places = [(shard, index) for shard in opened for index in range(len(shard))]
        self._files = [Path(shard.shard.path) for shard in opened]
        self.keys = [shard.key(index) for shard, index in self._places]

    def __reduce__(self):
        # Open files do not cross into worker processes; each opens its own.
        return (ShardSamples, self._arguments)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> Sample:
        shard, place = self._places[index]
        _, caption_key, labels, _ = self._arguments
        return read_sample(shard, place, caption_key, labels)

    def captions(self, index: int) -> tuple[str, ...]:
        """Those of a sample, for which its image is not read."""
        caption_key = self._arguments[1]
        return () if caption_key is None else read_captions(*self._places[index], caption_key)

    def fingerprint(self) -> str:
        return _digest([*self._arguments[1:3], *_states(self._files)])


class FileSamples:
    """Images in files of their own.

    Args:
        files: each image's path, and a sample that has its key, label and captions, and no image yet.
    """

    def __init__(self, files: Sequence[tuple[Path, Sample]]):
        self.files = files
        self.keys = [sample.key for _, sample in files]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> Sample:
        path, sample = self.files[index]
        try:
            return replace(sample, image=path.read_bytes())
        except OSError as error:
            raise SampleError("unreadable file", f"{path}: {error.strerror}") from error

    def fingerprint(self) -> str:
        return _digest([*(sample for _, sample in self.files), *_states(path for path, _ in self.files)])


class NumberedSamples:
    """Samples whose labels are checked against the number of classes as they are read."""

    def __init__(self, samples: Samples, num_classes: int):
        self.keys = samples.keys
        self._samples = samples
        self._num_classes = num_classes

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self._samples[index]
        if not 0 <= (-1 if sample.label is None else sample.label) < self._num_classes:
            raise DataError(
                f"{sample.key}: label {sample.label} is outside the {self._num_classes} class names "
                f"(0 to {self._num_classes - 1}); are these the class names of this data set?"
            )
        return sample

    def fingerprint(self) -> str:
        return self._samples.fingerprint()


class NamedSamples:
    """Samples whose label is the name of their class, read as their caption."""

    def __init__(self, samples: Samples, class_names: Sequence[str]):
        self.keys = samples.keys
        self._samples = samples
        self._labels = {name: label for label, name in reversed(list(enumerate(class_names)))}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> Sample:
        try:
            sample = self._samples[index]
        except SampleError as error:  # what is read as a caption is a label here, and counts as one
            raise SampleError(error.cause.replace("caption", "label"), error.detail) from error
        name = sample.captions[0]
        if name not in self._labels:
            raise DataError(
                f"{sample.key}: {name!r} is not among the class names; {nearest(name, list(self._labels))}"
            )
        return replace(sample, captions=(), label=self._labels[name])

    def fingerprint(self) -> str:
        return _digest([self._samples.fingerprint(), self._labels])


def class_folder_samples(folder: Path, class_folders: Sequence[str]) -> FileSamples:
    """Images in class folders, ordered by class and then by name; a label is the place of a folder.

    A folder that is not there has no image.
    """
    return FileSamples(
        [
            (path, Sample(path.relative_to(folder).as_posix(), b"", label=label))
            for label, name in enumerate(class_folders)
            for path in sorted((folder / name).glob("*"))
            if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS and not path.name.startswith(".")
        ]
    )


def _states(files: Iterable[Path]) -> Iterator[tuple[str, int, int]]:
    """Each file with its size and the time that it was written."""
    for path in files:
        try:
            state = path.stat()
        except OSError:  # counted where it is read
            yield str(path), -1, -1
        else:
            yield str(path), state.st_size, state.st_mtime_ns


def _digest(facts: Iterable[object]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for fact in facts:
        digest.update(repr(fact).encode() + b"\n")
    return digest.hexdigest()
