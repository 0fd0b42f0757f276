"""ImageNet's classes in index order, and the subsets and labels of its variants.

Synsets and the ReaL labels come with timm, class names with open_clip; both are installed with this
package. The two lists in maps/ name the classes of ImageNet-A and ImageNet-R.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

MAPS = Path(__file__).with_name("maps")
NUM_VALIDATION_IMAGES = 50_000


@cache
def synsets() -> tuple[str, ...]:
    """The WordNet ids of the 1000 classes, which are the names of the class folders; the place is the id."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def class_names() -> tuple[str, ...]:
    """open_clip's names of the 1000 classes, by id: OpenAI's, mended."""
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


@cache
def subset(name: str) -> tuple[int, ...]:
    """Ids of the 200 classes of `imagenet-a` or `imagenet-r`, ascending."""
    ids = {synset: number for number, synset in enumerate(synsets())}
    return tuple(ids[synset] for synset in (MAPS / f"{name}.txt").read_text().split())


@cache
def real_labels() -> Mapping[str, tuple[int, ...]]:
    """ReaL (arXiv 2006.07159): the ids that annotators accept for each validation image, by file name.

    Images for which they accept none are left out of its scores.
    """
    from timm.data.real_labels import RealLabelsImagenet

    labels = RealLabelsImagenet(range(NUM_VALIDATION_IMAGES)).real_labels  # pyright: ignore[reportArgumentType]
    return {file: tuple(ids) for file, ids in labels.items()}
