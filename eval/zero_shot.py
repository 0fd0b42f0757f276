"""Zero-shot classification: image and class embeddings -> ranks of the labels -> accuracies.

The metrics carry CLIP_benchmark's names and mean what they mean there: `acc1` and `acc5` over images,
`mean_per_class_recall` over the classes that have an image (scikit-learn's balanced accuracy). Where
there are fewer than five classes there is no `acc5`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eval.ranking import best_rank, share_within

IMAGES_AT_ONCE = 4096
"""Images scored together: bounds the logits kept, whatever the size of the data set."""


def label_ranks(
    images: Float[Tensor, "images dim"],
    classes: Float[Tensor, "classes dim"],
    labels: Int64[Tensor, " images"],
) -> Int64[Tensor, " images"]:
    """How many classes score above each image's own."""
    tiles = zip(images.split(IMAGES_AT_ONCE), labels.split(IMAGES_AT_ONCE), strict=True)
    return torch.cat([logit_label_ranks(tile @ classes.T, tile_labels) for tile, tile_labels in tiles])


def logit_label_ranks(
    logits: Float[Tensor, "images classes"], labels: Int64[Tensor, " images"]
) -> Int64[Tensor, " images"]:
    """How many logits of each image stand above its label's."""
    own = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    return best_rank(logits, own)


def classification_metrics(
    ranks: Int64[Tensor, " images"], labels: Int64[Tensor, " images"], num_classes: int
) -> dict[str, float]:
    """acc1, acc5 and mean_per_class_recall, between 0 and 1."""
    metrics = {"acc1": share_within(ranks, 1)}
    if num_classes >= 5:
        metrics["acc5"] = share_within(ranks, 5)
    recalls = per_class_recall(ranks, labels)
    metrics["mean_per_class_recall"] = sum(recalls.values()) / len(recalls)
    return metrics


def per_class_recall(ranks: Int64[Tensor, " images"], labels: Int64[Tensor, " images"]) -> dict[int, float]:
    """For each class that has an image, the share of its images that were classified as it."""
    return {label: share_within(ranks[labels == label], 1) for label in sorted(set(labels.tolist()))}


def classification_chance(num_classes: int) -> dict[str, float]:
    """What guessing at random scores, metric by metric."""
    chance = {"acc1": 1 / num_classes}
    if num_classes >= 5:
        chance["acc5"] = 5 / num_classes
    return chance | {"mean_per_class_recall": 1 / num_classes}
