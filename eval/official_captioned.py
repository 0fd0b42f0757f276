"""The retrieval data sets that are known by name, as their authors distribute them.

Flickr8k, Flickr30k and COCO in Karpathy's splits (`dataset_NAME.json`), and Flickr8k's own text files,
which have the same split. Every caption of an image counts: five, and for some of COCO's images six or
seven.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.datasets import CaptionedSamples
from eval.samples import FileSamples
from navit_clip.batch import Sample
from navit_clip.errors import DataError

Captions = Mapping[str, Sequence[str]]
"""An image's path below the image folder -> its captions."""


@dataclass(frozen=True, kw_only=True)
class CaptionedLayout:
    """Where a data set's captions and images are, and how many."""

    karpathy_file: str
    image_folders: tuple[str, ...]
    """Where the images may lie below the data set's folder."""
    num_images: int
    """In the test split."""
    num_captions: int


OFFICIAL = {
    "flickr8k": CaptionedLayout(
        karpathy_file="dataset_flickr8k.json",
        image_folders=("Flicker8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset", "Images"),
        num_images=1_000,
        num_captions=5_000,
    ),
    "flickr30k": CaptionedLayout(
        karpathy_file="dataset_flickr30k.json",
        image_folders=("flickr30k-images", "flickr30k_images", "Images"),
        num_images=1_000,
        num_captions=5_000,
    ),
    "mscoco": CaptionedLayout(
        karpathy_file="dataset_coco.json", image_folders=("",), num_images=5_000, num_captions=25_010
    ),
}

FLICKR8K_FOLDERS = ("", "Flickr8k_text")
FLICKR8K_CAPTIONS = "Flickr8k.token.txt"
FLICKR8K_SPLIT = "Flickr_8k.testImages.txt"


def open_official(name: str, root: Path, incomplete: bool) -> CaptionedSamples:
    """The test split of a data set of `OFFICIAL`, checked against what it should hold.

    Args:
        name: one of `OFFICIAL`.
        root: its folder.
        incomplete: whether a data set of which images are missing is judged all the same.

    Raises:
        DataError: captions or images are not there, or are incomplete.
    """
    layout = OFFICIAL[name]
    captions = _captions(name, root, layout)
    files = []
    for place, sentences in captions.items():
        folder = next((f for f in layout.image_folders if (root / f / place).is_file()), None)
        if folder is not None:
            files.append((root / folder / place, Sample(place, b"", tuple(sentences))))
    if not files:
        looked = ", ".join(str(root / folder) for folder in layout.image_folders)
        raise DataError(f"{name}: no image such as {next(iter(captions), 'any')} in {looked}")
    num_captions = sum(len(sample.captions) for _, sample in files)
    missing = ""
    if (len(files), num_captions) != (layout.num_images, layout.num_captions):
        missing = (
            f"{name} is not whole: {len(files):,} of {layout.num_images:,} images and {num_captions:,} of "
            f"{layout.num_captions:,} captions of its test split are there"
        )
    if missing and not incomplete:
        raise DataError(
            f"{root}: {missing}; --incomplete (in a suite, incomplete: true) judges what is there"
        )
    return CaptionedSamples(FileSamples(files), missing)


def expected_layout(name: str) -> str:
    """What the folder of a data set of `OFFICIAL` should hold, in words."""
    layout = OFFICIAL[name]
    images = " or ".join(f"{folder}/" for folder in layout.image_folders if folder) or "val2014/"
    return f"expected a folder with {layout.karpathy_file} and {images}; docs/evaluation.md says where from"


def _captions(name: str, root: Path, layout: CaptionedLayout) -> Captions:
    karpathy = root / layout.karpathy_file
    if karpathy.is_file():
        return _karpathy_captions(karpathy)
    folders = [root / f for f in FLICKR8K_FOLDERS if (root / f / FLICKR8K_CAPTIONS).is_file()]
    if name == "flickr8k" and folders:
        return _flickr8k_captions(folders[0])
    raise DataError(f"{name}: no captions: there is no {karpathy}; docs/evaluation.md says how to get it")


def _karpathy_captions(path: Path) -> Captions:
    try:
        images: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["images"]
        return {
            str(Path(image.get("filepath", "")) / image["filename"]): [
                sentence["raw"].strip() for sentence in image["sentences"]
            ]
            for image in images
            if image["split"] == "test"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected Karpathy's list of images, found {error!r}") from error


def _flickr8k_captions(folder: Path) -> Captions:
    """Lines `IMAGE#NUMBER<TAB>CAPTION`, of the images that the split's file names."""
    split = folder / FLICKR8K_SPLIT
    if not split.is_file():
        raise DataError(f"flickr8k: no list of the test images: there is no {split}")
    of_image: dict[str, list[str]] = defaultdict(list)
    for line in (folder / FLICKR8K_CAPTIONS).read_text(encoding="utf-8").splitlines():
        name, _, caption = line.partition("\t")
        of_image[name.partition("#")[0]].append(caption.strip())
    # Copies of the list are about that name an image too many, one that nobody captioned.
    names = split.read_text(encoding="utf-8").split()
    return {name: of_image[name] for name in names if name in of_image}
