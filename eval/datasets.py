"""Where evaluation samples come from: a path -> samples by number, class names, templates.

A path is one of

    a CLIP_benchmark folder     test/nshards.txt, test/0.tar …, and beside test/ the files named below
    shards                      a pattern as in training; captions and labels in the samples
    a folder of class folders   images in one folder per class

Labels are the integers in `key.cls`, or the class name that a key of `key.json` holds ("json.KEY"); then
the classes, unless named, are the distinct names in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.image_packs import Samples
from eval.names import read_names
from eval.prompts import check_templates
from navit_clip.batch import Sample
from navit_clip.config import nearest
from navit_clip.data.faults import Faults
from navit_clip.data.samples import IMAGE_EXTENSIONS, check_caption_key, read_sample
from navit_clip.data.shards import find_shards
from navit_clip.data.tar_index import OpenShard
from navit_clip.errors import ConfigError, DataError, SampleError

CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"


@dataclass(frozen=True, slots=True)
class ClassifiedSamples:
    """Samples with labels, and what the labels mean."""

    samples: Samples
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    """The data set's own; empty where it has none."""


class ShardSamples:
    """Samples of shards, by number.

    Args:
        shards: patterns, see `find_shards`.
        caption_key: where captions are, "txt" or "json.KEY"; None reads none.
        labels: whether a sample needs a label in its .cls.
    """

    def __init__(self, shards: Sequence[str], caption_key: str | None, labels: bool):
        check_caption_key(caption_key)
        self._arguments = (shards, caption_key, labels)
        opened = [OpenShard(shard) for shard in find_shards(shards)]
        self._places = [(shard, index) for shard in opened for index in range(len(shard))]
        self.keys = [shard.key(index) for shard, index in self._places]

    def __reduce__(self):
        # Open files do not cross into worker processes; each opens its own.
        return (ShardSamples, self._arguments)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> Sample:
        shard, place = self._places[index]
        _, caption_key, labels = self._arguments
        return read_sample(shard, place, caption_key, labels)


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


class FolderSamples:
    """Images in class folders, ordered by class and then by name; a label is the place of a folder."""

    def __init__(self, folder: Path, class_folders: Sequence[str]):
        self._folder = folder
        self._files = [
            (path, label)
            for label, name in enumerate(class_folders)
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS
        ]
        self.keys = [path.relative_to(folder).as_posix() for path, _ in self._files]
        if not self.keys:
            raise DataError(f"{folder}: no image in its {len(class_folders)} class folders")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> Sample:
        path, label = self._files[index]
        try:
            return Sample(self.keys[index], path.read_bytes(), label=label)
        except OSError as error:
            raise SampleError("unreadable file", f"{path}: {error.strerror}") from error


def open_captioned(path: str, split: str, caption_key: str) -> Samples:
    """Samples with captions, for retrieval.

    Raises:
        DataError: nothing is there, or what is there has no sample.
        ConfigError: the caption key is not of a known form.
    """
    return ShardSamples(_shards(path, split), caption_key, labels=False)


def open_classified(
    path: str, split: str, label_key: str, class_names: Sequence[str] = ()
) -> ClassifiedSamples:
    """Samples with labels, for classification.

    Args:
        path: see the module.
        split: subfolder of a CLIP_benchmark folder.
        label_key: "cls" or "json.KEY"; folders have neither and ignore it.
        class_names: in the order of the labels; empty takes the data set's own.

    Raises:
        DataError: nothing is there, or what is there has no sample.
        ConfigError: no class names are known, or they are not as many as the class folders; or a template
            of the data set has no place for the class name.
    """
    folder = Path(path)
    if _is_clip_benchmark(folder, split):
        own_names = _lines(folder / CLASS_NAMES_FILE)
        templates = check_templates(_lines(folder / TEMPLATES_FILE), source=folder / TEMPLATES_FILE)
    elif class_folders := _class_folders(folder):
        return _classified_folder(folder, class_folders, class_names)
    else:
        own_names, templates = (), ()
    names = tuple(class_names) or own_names
    shards = _shards(path, split)
    if label_key != "cls":
        named = ShardSamples(shards, label_key, labels=False)
        names = names or _distinct_names(named)
        return ClassifiedSamples(NamedSamples(named, names), names, templates)
    if not names:
        raise ConfigError(
            f"class_names: {path} has no {CLASS_NAMES_FILE}; give a file of class names in the order of the "
            "labels, or set label_key to the json.KEY that holds each sample's class name"
        )
    samples = ShardSamples(shards, caption_key=None, labels=True)
    return ClassifiedSamples(NumberedSamples(samples, len(names)), names, templates)


def _is_clip_benchmark(folder: Path, split: str) -> bool:
    return (folder / split / "nshards.txt").is_file()


def _shards(path: str, split: str) -> list[str]:
    folder = Path(path)
    if not _is_clip_benchmark(folder, split):
        return [path]
    text = (folder / split / "nshards.txt").read_text(errors="replace").strip()
    if not text.isdecimal() or int(text) == 0:
        raise DataError(f"{folder / split / 'nshards.txt'}: expected the number of shards, found {text!r}")
    return [str(folder / split / f"{number}.tar") for number in range(int(text))]


def _class_folders(folder: Path) -> list[str]:
    """Names of the class folders of a folder that has some and no shard, in the order of their labels."""
    if not folder.is_dir() or any(folder.glob("*.tar")):
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if splits := [name for name in names if _is_clip_benchmark(folder, name)]:
        raise DataError(f"{folder}: the data set has no such split; it has {', '.join(sorted(splits))}")
    # Folders that are integers are labels, and 10 comes after 9.
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _classified_folder(
    folder: Path, class_folders: Sequence[str], class_names: Sequence[str]
) -> ClassifiedSamples:
    if class_names and len(class_names) != len(class_folders):
        raise ConfigError(
            f"class_names: {len(class_names)} names for the {len(class_folders)} class folders of {folder}"
        )
    names = tuple(class_names) or tuple(name.replace("_", " ") for name in class_folders)
    return ClassifiedSamples(FolderSamples(folder, class_folders), names, templates=())


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(read_names(path, path.parent.name, path.stem)) if path.is_file() else ()


def _distinct_names(samples: Samples) -> tuple[str, ...]:
    names: set[str] = set()
    faults = Faults()
    for index, key in enumerate(samples.keys):
        try:
            names.add(samples[index].captions[0])
        except SampleError as error:  # counted again, and reported, where the image is read
            faults.add(key, error)
    if not names:
        raise DataError(f"no sample says what its class is; {faults.summary()}")
    return tuple(sorted(names))
