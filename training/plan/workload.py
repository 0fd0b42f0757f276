"""What a rank's batch holds in the mean, from a run's own draws of sizes and drop rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from navit_clip.data.drawn import DrawnSize, draw_size
from navit_clip.model import ClipConfig, Tower
from navit_clip.model.blocks import TransformerConfig
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
    caption_tokens: int | float
    """Of a caption, in the mean."""

    @property
    def image_tokens(self) -> float:
        return self.pairs * float(self.lengths.double().mean())

    @property
    def text_tokens(self) -> float:
        return self.pairs * self.caption_tokens

    def flops(self, backward: tuple[bool, bool]) -> float:
        """Operations of both towers, as utilisation counts them; whether image and text tower have a backward
        pass."""
        return self.forward_flops("image", backward[0]) + self.forward_flops("text", backward[1])

    def forward_flops(self, name: Tower, backward: bool = False) -> float:
        """Operations of one tower's forward pass, or of both passes."""
        model = self.model
        if name == "image":
            mean = image_tower_flops(model.image, self.lengths, backward) / len(self.lengths)
        else:
            mean = text_tower_flops(
                model.text, model.image.width, torch.tensor([self.caption_tokens]), backward
            )
        return self.pairs * mean

    def attention_flops(self, name: Tower) -> float:
        """Those of the forward pass that attention does."""
        tower: TransformerConfig = getattr(self.model, name)
        if name == "image":
            attended = float(self.lengths.double().square().mean())
        else:
            length = self.caption_tokens
            attended = length * (length + 1) / 2 if self.model.text.causal else length**2
        return self.pairs * 4 * tower.depth * tower.width * attended


def workload_of(
    config: RunConfig, lengths: Tensor, tokens_per_batch: int, caption_tokens: int | float
) -> Workload:
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
        pairs = min(pairs, float(config.data.max_images))
    if config.data.max_text_tokens:
        pairs = min(pairs, config.data.max_text_tokens / caption_tokens)
    return Workload(config.model, pairs, lengths, caption_tokens)


def typical_sizes(number: int = DRAWS) -> list[tuple[int, int]]:
    """Height and width of images of typical shapes, for where real ones are not at hand."""
    shapes = np.exp(np.random.default_rng(0).normal(0.0, ASPECT_DEVIATION / 2, number))
    return [(round(TYPICAL_SIDE / shape), round(TYPICAL_SIDE * shape)) for shape in shapes]


def draw_lengths(config: RunConfig, sizes: Sequence[tuple[int, int]], number: int = DRAWS) -> Tensor:
    """Patches that stay of so many images of these sizes, as the run draws them half way through."""
    return torch.tensor([drawn.num_kept for drawn in draw_images(config, sizes, number)])


def draw_images(config: RunConfig, sizes: Sequence[tuple[int, int]], number: int) -> list[DrawnSize]:
    """So many images of these sizes, as the run draws them half way through."""
    random, seen = np.random.default_rng(0), config.pairs / 2
    patch_size = config.model.image.patch_size
    chosen = (sizes[index] for index in random.integers(len(sizes), size=number))
    return [draw_size(config.data, random, seen, height, width, patch_size) for height, width in chosen]
