"""ImageNet's validation images as ILSVRC's own archive and Kaggle's have them: 50,000 files in one folder.

What each one shows is in a list beside them:

    LOC_val_solution.csv                          Kaggle's: ILSVRC2012_val_00000001,n01751748 111 108 …
    imagenet_2012_validation_synset_labels.txt    a synset a line, for image 1, 2, 3 …

The devkit's own ILSVRC2012_validation_ground_truth.txt has numbers that only its MATLAB file explains.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.samples import FileSamples
from navit_clip.batch import Sample
from navit_clip.errors import DataError

PREFIX = "ILSVRC2012_val_"
ARCHIVE = "ILSVRC2012_img_val.tar"
KAGGLE_LIST = "LOC_val_solution.csv"
SYNSET_LIST = "imagenet_2012_validation_synset_labels.txt"


def find_images(folders: Sequence[Path]) -> Path | None:
    """The first of some folders that has validation images in it."""
    return next((folder for folder in folders if any(folder.glob(f"{PREFIX}*.JPEG"))), None)


def flat_samples(folder: Path, root: Path, synsets: Sequence[str]) -> FileSamples:
    """The images of one folder, in the order of their classes and then names.

    Args:
        folder: of the images.
        root: the data set's folder; a list may lie in either.
        synsets: the classes in the order of the labels.

    Raises:
        DataError: there is no list, it is of another form, or it lacks an image.
    """
    classes, path = _read_list([folder, root])
    labels = {synset: label for label, synset in enumerate(synsets)}
    files = []
    for image in sorted(folder.glob(f"{PREFIX}*.JPEG")):
        synset = classes.get(image.stem)
        if synset not in labels:
            raise DataError(f"{path}: expected a synset of ImageNet for {image.name}, found {synset}")
        files.append((image, Sample(image.name, b"", label=labels[synset])))
    return FileSamples(sorted(files, key=lambda pair: (pair[1].label, pair[1].key)))


def _read_list(folders: Sequence[Path]) -> tuple[Mapping[str, str], Path]:
    """The synset of each image by its name without suffix, and where that was read."""
    for folder in folders:
        kaggle, synsets = folder / KAGGLE_LIST, folder / SYNSET_LIST
        if kaggle.is_file():
            with kaggle.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 2]
            return {name: boxes.split(" ")[0] for name, boxes in rows}, kaggle
        if synsets.is_file():
            lines = synsets.read_text().split()
            return {f"{PREFIX}{number:08d}": synset for number, synset in enumerate(lines, 1)}, synsets
    raise DataError(
        f"{folders[0]}: images in one folder, and no list of their classes: expected {KAGGLE_LIST} or "
        f"{SYNSET_LIST} there or in {folders[-1]}, or the images sorted into class folders"
    )
