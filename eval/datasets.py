"""Where evaluation samples come from: a path -> samples by number, classes, templates.

A path is one of

    a CLIP_benchmark folder     test/nshards.txt, test/0.tar …, and beside test/ the files named below
    shards                      a pattern as in training; captions and labels in the samples
    a folder of class folders   images in one folder per class

Labels are the integers in `key.cls`, or the class name that a key of `key.json` holds ("json.KEY"); then
the classes, unless named, are the distinct names in alphabetical order. Data sets that are known by name
have files of their own: `eval.official_classified` and `eval.official_captioned`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.class_space import ClassSpace
from eval.image_packs import Samples
from eval.names import check_class_names, read_names
from eval.prompts import check_templates
from eval.samples import NamedSamples, NumberedSamples, ShardSamples, class_folder_samples
from navit_clip.data.faults import Faults
from navit_clip.data.remote import RemoteConfig
from navit_clip.errors import ConfigError, DataError, SampleError

CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"


@dataclass(frozen=True)
class ClassifiedSamples:
    """Samples with labels, and what the labels mean."""

    samples: Samples
    space: ClassSpace
    templates: tuple[str, ...] = ()
    """The data set's own; empty where it has none."""
    border: int = 0
    """Pixels to cut off on each side of every image."""
    accepted: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The labels that count as right for each key, where these are others than the sample's own."""
    missing: str = ""
    """What lacks to the whole data set."""
    scoring: str = "the label among all classes"
    """What counts as right."""


@dataclass(frozen=True)
class CaptionedSamples:
    """Samples with captions."""

    samples: Samples
    missing: str = ""
    """What lacks to the whole data set."""


def open_captioned(
    path: str, split: str, caption_key: str, remote: RemoteConfig | None = None
) -> CaptionedSamples:
    """Samples with captions, for retrieval.

    Args:
        path: see the module.
        split: subfolder of a CLIP_benchmark folder.
        caption_key: "txt" or "json.KEY".
        remote: how to fetch shards from elsewhere.

    Raises:
        DataError: nothing is there, or what is there has no sample.
        ConfigError: the caption key is not of a known form.
    """
    return CaptionedSamples(ShardSamples(_shards(path, split), caption_key, labels=False, remote=remote))


def open_classified(
    path: str,
    split: str,
    label_key: str,
    class_names: Sequence[str] = (),
    remote: RemoteConfig | None = None,
) -> ClassifiedSamples:
    """Samples with labels, for classification.

    Args:
        path: see the module.
        split: subfolder of a CLIP_benchmark folder.
        label_key: "cls" or "json.KEY"; folders have neither and ignore it.
        class_names: in the order of the labels; empty takes the data set's own.
        remote: how to fetch shards from elsewhere.

    Raises:
        DataError: nothing is there, or what is there has no sample.
        ConfigError: no class names are known, or they are not as many as the data set's own, or those in
            another order; or a template of the data set has no place for the class name.
    """
    folder = Path(path)
    if is_clip_benchmark(folder, split):
        own_names = _lines(folder / CLASS_NAMES_FILE)
        if class_names and own_names:
            check_class_names(class_names, own_names, whose=str(folder / CLASS_NAMES_FILE))
        templates = check_templates(_lines(folder / TEMPLATES_FILE), source=folder / TEMPLATES_FILE)
    elif class_folders := _class_folders(folder, split):
        return _classified_folder(folder, class_folders, class_names)
    else:
        own_names, templates = (), ()
    names = tuple(class_names) or own_names
    shards = _shards(path, split)
    if label_key != "cls":
        named = ShardSamples(shards, label_key, labels=False, remote=remote)
        names = names or _distinct_names(named)
        return ClassifiedSamples(NamedSamples(named, names), ClassSpace.plain(names), templates)
    samples = ShardSamples(shards, caption_key=None, labels=True, remote=remote)
    if not names:
        raise ConfigError(
            f"class_names: {path} has no {CLASS_NAMES_FILE}; give a file of class names in the order of the "
            "labels, or set label_key to the json.KEY that holds each sample's class name"
        )
    return ClassifiedSamples(NumberedSamples(samples, len(names)), ClassSpace.plain(names), templates)


def is_clip_benchmark(folder: Path, split: str) -> bool:
    """Whether a folder is laid out as CLIP_benchmark's exporter does."""
    return (folder / split / "nshards.txt").is_file()


def _shards(path: str, split: str) -> list[str]:
    folder = Path(path)
    if not is_clip_benchmark(folder, split):
        return [path]
    text = (folder / split / "nshards.txt").read_text(errors="replace").strip()
    if not text.isdecimal() or int(text) == 0:
        raise DataError(f"{folder / split / 'nshards.txt'}: expected the number of shards, found {text!r}")
    return [str(folder / split / f"{number}.tar") for number in range(int(text))]


def _class_folders(folder: Path, split: str) -> list[str]:
    """Names of the class folders of a folder that has some and no shard, in the order of their labels."""
    if not folder.is_dir() or any(folder.glob("*.tar")):
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not names:
        raise DataError(
            f"{folder}: expected class folders, shards, or CLIP_benchmark's {split}/nshards.txt; found none"
        )
    if splits := [name for name in names if is_clip_benchmark(folder, name)]:
        raise DataError(f"{folder}: the data set has no such split; it has {', '.join(sorted(splits))}")
    # Folders that are integers are labels, and 10 comes after 9.
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _classified_folder(
    folder: Path, class_folders: Sequence[str], class_names: Sequence[str]
) -> ClassifiedSamples:
    if class_names:
        check_class_names(class_names, class_folders, whose=f"the class folders of {folder}")
    names = tuple(class_names) or tuple(name.replace("_", " ") for name in class_folders)
    samples = class_folder_samples(folder, class_folders)
    if not len(samples):
        raise DataError(f"{folder}: no image in its {len(class_folders)} class folders")
    return ClassifiedSamples(samples, ClassSpace.plain(names))


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(read_names(path, path.parent.name, path.stem)) if path.is_file() else ()


def _distinct_names(samples: ShardSamples) -> tuple[str, ...]:
    names: set[str] = set()
    faults = Faults()
    for index, key in enumerate(samples.keys):
        try:
            names.add(samples.captions(index)[0])
        except SampleError as error:  # counted again, and reported, where the image is read
            faults.add(key, error)
    if not names:
        raise DataError(f"no sample says what its class is; {faults.summary()}")
    return tuple(sorted(names))
