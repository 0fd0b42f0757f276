"""The classification data sets that are known by name, as their authors distribute them.

Each is a folder of class folders whose names and number are known, so that a data set that is not whole,
or is another, is noticed before the run. A name also says how it is scored: see `VARIANTS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eval import imagenet_flat, objectnet
from eval.class_space import ClassSpace
from eval.datasets import ClassifiedSamples
from eval.imagenet import MAPS, NUM_VALIDATION_IMAGES, class_names, real_labels, subset, synsets
from eval.prompts import load_templates
from eval.samples import FileSamples, class_folder_samples
from navit_clip.errors import ConfigError, DataError

MOST_NAMED = 5
"""Class folders that an error names before it only counts them."""


@dataclass(frozen=True, kw_only=True)
class OfficialLayout:
    """What a whole data set consists of."""

    class_folders: tuple[str, ...]
    """In the order of the labels."""
    space: ClassSpace
    num_images: int
    """In all class folders together."""
    class_size: int = 0
    """Images of every class, where all have as many."""
    scoring: str
    """What counts as right."""
    places: tuple[str, ...] = ("",)
    """Where the class folders may lie below the data set's folder."""
    own_folder: str = ""
    """What the folder of the class folders is called, where nothing else tells the data set from others."""
    other_folders: frozenset[str] = frozenset()
    """Class folders that belong to the data set and are not judged."""
    border: int = 0
    """Pixels to cut off on each side of every image."""
    is_flat: bool = False
    """Whether the images may lie in one folder, with a list; see `eval.imagenet_flat`."""
    accepted: Callable[[], Mapping[str, tuple[int, ...]]] | None = None
    """Labels by file name, where they are others than the class folders say."""


def open_official(name: str, root: Path, incomplete: bool) -> ClassifiedSamples:
    """A data set of `OFFICIAL`, checked against what it should hold.

    Args:
        name: one of `OFFICIAL`.
        root: its folder: of the class folders, or one of those above them that the archive makes.
        incomplete: whether a data set of which classes or images are missing is judged all the same.

    Raises:
        DataError: it is not there, has a class folder that is none of its own, or is incomplete.
    """
    layout = OFFICIAL[name]()
    flat = imagenet_flat.find_images([root / place for place in layout.places]) if layout.is_flat else None
    if flat is not None:
        folder, samples, absent = flat, imagenet_flat.flat_samples(flat, root, layout.class_folders), []
    else:
        folder = _class_root(name, root, layout)
        samples, absent = _in_class_folders(name, folder, layout)
    by_file = layout.accepted() if layout.accepted else {}
    missing = _missing(name, layout, absent, samples, by_file)
    if missing and not incomplete:
        raise DataError(
            f"{folder}: {missing}; --incomplete (in a suite, incomplete: true) judges what is there"
        )
    if not len(samples):
        raise DataError(f"{folder}: no image in its class folders")
    accepted: dict[str, tuple[int, ...]] = {}
    if by_file:
        accepted = {key: by_file[Path(key).name] for key in samples.keys if by_file.get(Path(key).name)}
        samples = FileSamples([pair for pair in samples.files if pair[1].key in accepted])
        if not accepted:
            raise DataError(f"{folder}: no image is called as the labels of {name} call theirs")
    return ClassifiedSamples(
        samples,
        layout.space,
        load_templates(["openai-80"], name),
        layout.border,
        accepted,
        missing,
        layout.scoring,
    )


def expected_layout(name: str) -> str:
    """What the folder of a data set of `OFFICIAL` should hold, in words."""
    layout = OFFICIAL[name]()
    places = " or ".join(str(Path(place) / layout.class_folders[0]) for place in layout.places)
    return f"expected a folder with {places} and the other class folders; docs/evaluation.md says where from"


def _in_class_folders(name: str, folder: Path, layout: OfficialLayout) -> tuple[FileSamples, list[str]]:
    """The images, and which class folders are not there."""
    found = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    known = set(layout.class_folders)
    if extra := sorted(found - known - layout.other_folders):
        raise DataError(f"{folder}: {name} has no class {_listed(extra)}; is this another data set?")
    absent = [class_folder for class_folder in layout.class_folders if class_folder not in found]
    return class_folder_samples(folder, layout.class_folders), absent


def _class_root(name: str, root: Path, layout: OfficialLayout) -> Path:
    """The folder that holds the class folders."""
    known = {*layout.class_folders, *layout.other_folders}
    found = [
        folder
        for folder in (root / place for place in layout.places)
        if folder.is_dir() and any(path.name in known for path in folder.iterdir() if path.is_dir())
    ]
    own = [
        folder for folder in found if layout.own_folder in ("", folder.absolute().name, folder.resolve().name)
    ]
    if own:
        return own[0]
    if found:
        raise DataError(
            f"{name}: only the folder's name tells it from the other data sets of its kind; expected class "
            f"folders in {layout.own_folder}, as its archive unpacks, found them in {found[0]}"
        )
    looked = ", ".join(str(root / place) for place in layout.places)
    if layout.is_flat and (root / imagenet_flat.ARCHIVE).is_file():
        raise DataError(
            f"{name}: {root / imagenet_flat.ARCHIVE} is not unpacked; expected its images in {root / 'val'}: "
            f"mkdir val && tar -xf {imagenet_flat.ARCHIVE} -C val"
        )
    raise DataError(
        f"{name}: no class folder such as {layout.class_folders[0]} in {looked}; docs/evaluation.md says how "
        "to get the data set"
    )


def _missing(
    name: str,
    layout: OfficialLayout,
    absent: Sequence[str],
    samples: FileSamples,
    by_file: Mapping[str, tuple[int, ...]],
) -> str:
    """What lacks to the whole data set, in words; empty where nothing does."""
    faults = []
    if absent:
        faults.append(f"{len(absent)} of the {len(layout.class_folders)} class folders ({_listed(absent)})")
    if len(samples) != layout.num_images:
        faults.append(f"{len(samples):,} of {layout.num_images:,} images are there")
    counts = Counter(sample.label for _, sample in samples.files)
    others = [
        f"{folder} ({counts[label]})"
        for label, folder in enumerate(layout.class_folders)
        if layout.class_size not in (0, counts[label]) and folder not in absent
    ]
    if others:
        faults.append(f"{len(others)} classes do not have {layout.class_size} images each: {_listed(others)}")
    names = {Path(key).name for key in samples.keys}
    if unknown := [key for key in samples.keys if by_file and Path(key).name not in by_file]:
        faults.append(f"the labels know no image that is called {_listed(unknown)}")
    labelled = {file for file, labels in by_file.items() if labels}
    if unlabelled := len(labelled - names):
        faults.append(f"{len(labelled) - unlabelled:,} of {len(labelled):,} labelled images are there")
    return f"{name} is not whole: " + ("missing " if absent else "") + "; ".join(faults) if faults else ""


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _imagenet(
    num_images: int, *places: str, class_size: int = 0, flat: bool = False, real: bool = False
) -> OfficialLayout:
    return OfficialLayout(
        class_folders=synsets(),
        space=ClassSpace.plain(class_names()),
        num_images=num_images,
        class_size=class_size,
        scoring=(
            "any of ReaL's labels among 1000 classes; images for which it has none are left out"
            if real
            else "the label among 1000 classes"
        ),
        places=("", *places),
        is_flat=flat,
        accepted=real_labels if real else None,
    )


def _imagenet_v2(variant: str) -> OfficialLayout:
    """Its class folders are called by their ids, which are numbers: 10 comes after 9.

    The three variants have the same class folders and as many images in each.
    """
    return OfficialLayout(
        class_folders=tuple(map(str, range(1000))),
        space=ClassSpace.plain(class_names()),
        num_images=10_000,
        class_size=10,
        scoring="the label among 1000 classes",
        places=("", f"imagenetv2-{variant}-format-val"),
        own_folder=f"imagenetv2-{variant}-format-val",
    )


def _imagenet_subset(name: str, num_images: int) -> OfficialLayout:
    """ImageNet-A and -R are scored among their own 200 classes."""
    ids = subset(name)
    return OfficialLayout(
        class_folders=tuple(synsets()[number] for number in ids),
        space=ClassSpace.plain([class_names()[number] for number in ids]),
        num_images=num_images,
        scoring="the label among the data set's own 200 classes",
        places=("", name),
    )


def _objectnet(space: Callable[[], ClassSpace], scoring: str) -> OfficialLayout:
    overlapping = [row.folder for row in objectnet.overlapping_classes()]
    return OfficialLayout(
        class_folders=tuple(overlapping),
        space=space(),
        num_images=objectnet.NUM_OVERLAPPING_IMAGES,
        scoring=scoring,
        places=("", "images", "objectnet-1.0/images"),
        other_folders=frozenset(row.folder for row in objectnet.all_classes()) - frozenset(overlapping),
        border=objectnet.BORDER,
    )


def _caltech101() -> OfficialLayout:
    rows = [line.split("\t") for line in (MAPS / "caltech101.tsv").read_text().splitlines()]
    return OfficialLayout(
        class_folders=tuple(folder for folder, _ in rows),
        space=ClassSpace.plain([name for _, name in rows]),
        num_images=9_144,
        scoring="the label among 102 classes, the background one of them",
        places=("", "101_ObjectCategories", "caltech-101/101_ObjectCategories"),
    )


def _imagenette() -> OfficialLayout:
    wnids = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079")
    wnids += ("n03394916", "n03417042", "n03425413", "n03445777", "n03888257")
    names = dict(zip(synsets(), class_names(), strict=True))
    return OfficialLayout(
        class_folders=wnids,
        space=ClassSpace.plain([names[wnid] for wnid in wnids]),
        num_images=3_925,
        scoring="the label among 10 classes",
        places=(
            "",
            "val",
            *(f"{folder}/val" for folder in ("imagenette2", "imagenette2-320", "imagenette2-160")),
        ),
    )


def _validation(real: bool) -> OfficialLayout:
    """ILSVRC's validation images, unpacked by hand or by Kaggle's archive."""
    places = "val", "ILSVRC/Data/CLS-LOC/val"
    return _imagenet(NUM_VALIDATION_IMAGES, *places, class_size=50, flat=True, real=real)


OFFICIAL: Mapping[str, Callable[[], OfficialLayout]] = {
    "imagenet1k": cache(lambda: _validation(real=False)),
    "imagenet1k-real": cache(lambda: _validation(real=True)),
    "imagenetv2-matched-frequency": cache(lambda: _imagenet_v2("matched-frequency")),
    "imagenetv2-threshold0.7": cache(lambda: _imagenet_v2("threshold0.7")),
    "imagenetv2-top-images": cache(lambda: _imagenet_v2("top-images")),
    "imagenet-a": cache(lambda: _imagenet_subset("imagenet-a", 7_500)),
    "imagenet-r": cache(lambda: _imagenet_subset("imagenet-r", 30_000)),
    "imagenet-sketch": cache(lambda: _imagenet(50_889, "sketch", "imagenet_sketch/sketch")),
    "objectnet-own-names": cache(
        lambda: _objectnet(objectnet.own_names, "the label among 113 classes under ObjectNet's own names")
    ),
    "objectnet-restricted": cache(
        lambda: _objectnet(
            objectnet.restricted,
            "the label among 113 classes, each scored as the best of its ImageNet ids, 125 in all",
        )
    ),
    "objectnet-mapped": cache(
        lambda: _objectnet(
            objectnet.mapped, "one of the label's ImageNet ids among all 1000, those without a class included"
        )
    ),
    "caltech101": cache(_caltech101),
    "imagenette": cache(_imagenette),
}
"""Names of data sets, and what each consists of, worked out when it is asked for."""

VARIANTS = {
    "objectnet": "three scoring protocols, which differ by many points",
    "imagenetv2": "three sets of images",
}
"""Names that say too little, and why."""


def check_variant(name: str) -> None:
    """Raises ConfigError for a name that leaves open which of several data sets or scorings is meant."""
    if name in VARIANTS:
        choices = ", ".join(official for official in OFFICIAL if official.startswith(name))
        raise ConfigError(f"dataset: {name} has {VARIANTS[name]}; name one: {choices}")
