"""What a rank's batch holds in the mean, from a run's own draws of sizes and drop rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from navit_clip.data.drawn import draw_size
from navit_clip.model import TOWERS, ClipConfig
from navit_clip.model.flops import image_tower_flops, text_tower_flops
from training.config import RunConfig

DRAWS = 4096
TYPICAL_SIDE = 500
"""Pixels: the root of an image's area, which matters only where images are not enlarged."""
ASPECT_DEVIATION = 0.4
"""Of the logarithm of width over height; photographs on the web are mostly between 2:3 and 3:2."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A batch of one rank, in the mean."""

    model: ClipConfig
    pairs: float
    lengths: Tensor
    """Patches kept of some images, drawn as training draws them."""
    caption_tokens: int
    """Of a caption, in the mean."""

    @property
    def image_tokens(self) -> float:
        return self.pairs * float(self.lengths.double().mean())

    @property
    def text_tokens(self) -> float:
        return self.pairs * self.caption_tokens

    def flops(self, backward: tuple[bool, bool]) -> float:
        """Operations of both towers; whether image and text tower have a backward pass."""
        images = image_tower_flops(self.model.image, self.lengths, backward[0]) / len(self.lengths)
        captions = torch.tensor([self.caption_tokens])
        texts = text_tower_flops(self.model.text, self.model.image.width, captions, backward[1])
        return self.pairs * (images + texts)

    def attention_flops(self, backward: tuple[bool, bool]) -> float:
        """Those of them that attention does."""
        squares = {
            "image": float(self.lengths.double().square().mean()),
            "text": self.caption_tokens**2,
        }
        return self.pairs * sum(
            (3 if trained else 1) * 4 * tower.depth * tower.width * squares[name]
            for name, trained in zip(TOWERS, backward, strict=True)
            for tower in [getattr(self.model, name)]
        )


def workload_of(config: RunConfig, lengths: Tensor, tokens_per_batch: int, caption_tokens: int) -> Workload:
    """Of a run whose batches hold so many image tokens.

    Args:
        config: the run.
        lengths: of its images, from `draw_lengths`.
        tokens_per_batch: the budget; batches are full to within a hundredth of a percent.
        caption_tokens: of a caption in the mean, before it is cut to the context.
    """
    caption_tokens = min(caption_tokens, config.model.text.context_length)
    pairs = tokens_per_batch / float(lengths.double().mean())
    if config.data.max_images:
        pairs = min(pairs, config.data.max_images)
    if config.data.max_text_tokens:
        pairs = min(pairs, config.data.max_text_tokens / caption_tokens)
    return Workload(config.model, pairs, lengths, caption_tokens)


def typical_sizes(number: int = DRAWS) -> list[tuple[int, int]]:
    """Height and width of images of typical shapes, for where real ones are not at hand."""
    shapes = np.exp(np.random.default_rng(0).normal(0.0, ASPECT_DEVIATION / 2, number))
    return [(round(TYPICAL_SIDE / shape), round(TYPICAL_SIDE * shape)) for shape in shapes]


def draw_lengths(config: RunConfig, sizes: Sequence[tuple[int, int]], number: int = DRAWS) -> Tensor:
    """Patches that stay of so many images of these sizes, as the run draws them half way through."""
    random, seen = np.random.default_rng(0), config.pairs / 2
    data, patch_size = config.data, config.model.image.patch_size
    lengths = []
    for index in random.integers(len(sizes), size=number):
        height, width = sizes[index]
        lengths.append(draw_size(data, random, seen, height, width, patch_size).num_kept)
    return torch.tensor(lengths)
