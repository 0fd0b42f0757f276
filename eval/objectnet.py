"""ObjectNet's classes: folders, labels, and the ImageNet ids that 113 of the 313 stand for.

From the mappings of objectnet-template-pytorch (MIT). An ObjectNet id is a place among the sorted labels,
not among the sorted folders, which are in another order.

ObjectNet may be used for evaluation only: its licence forbids to tune parameters on it.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from eval.class_space import ClassSpace
from eval.imagenet import MAPS, class_names

BORDER = 2
"""Pixels to cut off on each side: the images carry a red border against accidental training on them."""
NUM_OVERLAPPING_IMAGES = 18_574


class ObjectNetClass(NamedTuple):
    """A line of the table."""

    folder: str
    label: str
    imagenet_ids: tuple[int, ...]
    """Empty for the 200 classes that ImageNet lacks."""


@cache
def all_classes() -> tuple[ObjectNetClass, ...]:
    """The 313 classes in the order of their ids."""
    rows = [line.split("\t") for line in (MAPS / "objectnet.tsv").read_text().splitlines()]
    return tuple(ObjectNetClass(folder, label, tuple(map(int, ids.split()))) for folder, label, ids in rows)


def overlapping_classes() -> list[ObjectNetClass]:
    """The 113 classes that ImageNet has, too, in the order of their ids."""
    return [row for row in all_classes() if row.imagenet_ids]


def own_names() -> ClassSpace:
    """113 columns: the classes under ObjectNet's own names, in lower case (CLIP_benchmark, wise-ft)."""
    return ClassSpace.plain([row.label.lower() for row in overlapping_classes()])


def restricted() -> ClassSpace:
    """125 columns: the ImageNet ids of the classes; a class scores as its best id (imagenet-testbed)."""
    rows = overlapping_classes()
    pairs = sorted((imagenet_id, place) for place, row in enumerate(rows) for imagenet_id in row.imagenet_ids)
    return ClassSpace(
        classes=tuple(row.label for row in rows),
        prompts=tuple(class_names()[imagenet_id] for imagenet_id, _ in pairs),
        column_class=tuple(place for _, place in pairs),
        merged=True,
    )


def mapped() -> ClassSpace:
    """1000 columns: all ImageNet ids, mapped to classes after ranking (ObjectNet's own evaluation code)."""
    rows = overlapping_classes()
    place_of = {imagenet_id: place for place, row in enumerate(rows) for imagenet_id in row.imagenet_ids}
    return ClassSpace(
        classes=tuple(row.label for row in rows),
        prompts=class_names(),
        column_class=tuple(place_of.get(imagenet_id, -1) for imagenet_id in range(len(class_names()))),
        merged=False,
    )
