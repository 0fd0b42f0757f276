"""Retrieval: image and caption embeddings -> recall@k, both ways.

CLIP_benchmark's names and meaning: `image_retrieval_recall@k` is the share of captions whose image is
among the k images scored highest; `text_retrieval_recall@k` the share of images for which at least one
of their captions is among the k captions scored highest (not the share of its captions found).
"""

from __future__ import annotations

from math import comb

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eval.bootstrap import Bootstrap, Interval, Totals, interval
from eval.ranking import best_rank

RECALL_AT = (1, 5, 10)

QUERIES_AT_ONCE = 1024
"""Queries scored together: memory grows with the number of targets, not with its square."""


def image_ranks(
    images: Float[Tensor, "images dim"],
    captions: Float[Tensor, "captions dim"],
    caption_image: Int64[Tensor, " captions"],
) -> Int64[Tensor, " captions"]:
    """For each caption, how many images come before its own; `caption_image` says which that is."""
    candidates = torch.arange(len(images), device=images.device)
    tiles = zip(captions.split(QUERIES_AT_ONCE), caption_image.split(QUERIES_AT_ONCE), strict=True)
    return torch.cat([best_rank(tile @ images.T, candidates == own[:, None]) for tile, own in tiles])


def text_ranks(
    images: Float[Tensor, "images dim"],
    captions: Float[Tensor, "captions dim"],
    caption_image: Int64[Tensor, " captions"],
) -> Int64[Tensor, " images"]:
    """For each image, how many captions come before the best of its own; every image has at least one."""
    numbers = torch.arange(len(images), device=images.device)
    tiles = zip(images.split(QUERIES_AT_ONCE), numbers.split(QUERIES_AT_ONCE), strict=True)
    return torch.cat(
        [best_rank(tile @ captions.T, caption_image == number[:, None]) for tile, number in tiles]
    )


def retrieval_metrics(
    image_ranks: Int64[Tensor, " captions"],
    text_ranks: Int64[Tensor, " images"],
    caption_image: Int64[Tensor, " captions"],
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Recall at 1, 5 and 10, both ways, between 0 and 1; and the 95 % interval of each.

    Images are resampled with their captions, both ways: captions of one image are not independent.
    """
    owners, num_images = caption_image.cpu().numpy(), len(text_ranks)
    hits = {}
    for k in RECALL_AT:
        found = (image_ranks < k).cpu().numpy()
        hits[f"image_retrieval_recall@{k}"] = np.bincount(owners, found, num_images)
    for k in RECALL_AT:
        hits[f"text_retrieval_recall@{k}"] = (text_ranks < k).cpu().numpy().astype(float)
    num_captions = np.bincount(owners, minlength=num_images).astype(float)
    captions, *found = Bootstrap(num_images).totals(Totals(num_captions), *map(Totals, hits.values()))
    metrics = {}
    intervals = {}
    for (name, hit), sums in zip(hits.items(), found, strict=True):
        of_captions = name.startswith("image")
        metrics[name] = float(hit.sum() / (num_captions.sum() if of_captions else num_images))
        intervals[name] = interval((sums / (captions if of_captions else num_images))[:, 0])
    return metrics, intervals


def retrieval_chance(captions_per_image: list[int]) -> dict[str, float]:
    """What guessing at random scores, metric by metric.

    An image with m captions among n is missed by k random ones with probability C(n - m, k) / C(n, k).
    """
    num_images, num_captions = len(captions_per_image), sum(captions_per_image)
    image = {f"image_retrieval_recall@{k}": min(1.0, k / num_images) for k in RECALL_AT}
    text = {}
    for k in RECALL_AT:
        drawn = min(k, num_captions)
        missed = [comb(num_captions - own, drawn) / comb(num_captions, drawn) for own in captions_per_image]
        text[f"text_retrieval_recall@{k}"] = 1 - sum(missed) / num_images
    return image | text
