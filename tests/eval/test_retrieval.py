from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from eval import retrieval
from eval.retrieval import image_ranks, retrieval_chance, retrieval_metrics, text_ranks

# Three images on the axes of a 3-d space; captions as mixtures, so that every score can be read off.
IMAGES = torch.eye(3)
CAPTIONS = torch.tensor(
    [
        [0.9, 0.1, 0.0],  # of image 0, closest to it
        [0.1, 0.9, 0.0],  # of image 0, closest to image 1
        [0.5, 0.4, 0.3],  # of image 1, second after image 0
        [0.2, 0.3, 0.1],  # of image 2, last
    ]
)
CAPTION_IMAGE = torch.tensor([0, 0, 1, 2])


def test_hand_worked_ranks():
    assert image_ranks(IMAGES, CAPTIONS, CAPTION_IMAGE).tolist() == [0, 1, 1, 2]
    # Image 0 finds its first caption on top; image 1 finds caption 1 (0.9) before its own (0.4);
    # image 2 finds caption 2 (0.3) before its own (0.1).
    assert text_ranks(IMAGES, CAPTIONS, CAPTION_IMAGE).tolist() == [0, 1, 1]


def test_hand_worked_recalls():
    owners = torch.tensor([0, 0, 1, 1])
    metrics, intervals = retrieval_metrics(torch.tensor([0, 4, 5, 20]), torch.tensor([0, 9]), owners)
    assert set(intervals) == set(metrics)
    assert metrics == {
        "image_retrieval_recall@1": 0.25,
        "image_retrieval_recall@5": 0.5,
        "image_retrieval_recall@10": 0.75,
        "text_retrieval_recall@1": 0.5,
        "text_retrieval_recall@5": 0.5,
        "text_retrieval_recall@10": 1.0,
    }


@given(seed=st.integers(0, 2**16))
def test_text_retrieval_is_one_where_any_caption_is_found(seed):
    """The definition taken literally, for scores without ties."""
    generator = torch.Generator().manual_seed(seed)
    caption_image = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 5, 6])
    images = torch.randn(7, 16, generator=generator)
    captions = torch.randn(12, 16, generator=generator)
    scores = images @ captions.T
    for k in (1, 5, 10):
        found = [
            bool((caption_image[scores[image].topk(k).indices] == image).any())
            for image in range(len(images))
        ]
        metrics, _ = retrieval_metrics(
            image_ranks(images, captions, caption_image),
            text_ranks(images, captions, caption_image),
            caption_image,
        )
        assert metrics[f"text_retrieval_recall@{k}"] == sum(found) / len(images)


def test_intervals_resample_images_with_their_captions():
    """Ten captions of each image are found or lost together: they say no more than one of them does."""
    found = torch.arange(40) < 30
    ranks = torch.where(found, 0, 20)
    owners = torch.arange(40).repeat_interleave(10)
    one, one_interval = retrieval_metrics(ranks, ranks, torch.arange(40))
    ten, ten_interval = retrieval_metrics(ranks.repeat_interleave(10), ranks, owners)
    assert ten == one
    assert ten_interval == one_interval
    low, high = one_interval["image_retrieval_recall@1"]
    assert 0.58 < low < 0.66
    assert 0.84 < high < 0.92


def test_chance_by_counting_every_draw():
    captions_per_image = [3, 1, 2, 2, 1]
    owner = [image for image, count in enumerate(captions_per_image) for _ in range(count)]
    chance = retrieval_chance(captions_per_image)
    draws = list(combinations(owner, 5))
    hits = [sum(image in draw for draw in draws) / len(draws) for image in range(5)]
    assert chance["text_retrieval_recall@5"] == pytest.approx(sum(hits) / 5)
    assert chance["image_retrieval_recall@1"] == 1 / 5
    # More wanted than there are: everything is found.
    assert chance["image_retrieval_recall@10"] == chance["text_retrieval_recall@10"] == 1.0


def test_tiles_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(9, 8, generator=generator), dim=1)
    captions = F.normalize(torch.randn(14, 8, generator=generator), dim=1)
    caption_image = torch.tensor([0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8])
    whole = [rank(images, captions, caption_image) for rank in (image_ranks, text_ranks)]
    monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", 4)
    tiled = [rank(images, captions, caption_image) for rank in (image_ranks, text_ranks)]
    assert all(torch.equal(one, other) for one, other in zip(whole, tiled, strict=True))
