"""The NaViT image tower: packed patches of images of any size -> one vector per image."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from navit_clip.batch import PackedImages
from navit_clip.errors import ConfigError
from navit_clip.model.blocks import Transformer, TransformerConfig
from navit_clip.model.pooling import AttentionPooling
from navit_clip.model.positions import PositionConfig, make_positions
from navit_clip.model.segments import segment_index


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig(TransformerConfig):
    """The image tower; its width is the dimension of the shared embedding."""

    patch_size: int = 16
    """Pixels along a patch's side."""
    position: PositionConfig = field(default_factory=PositionConfig)
    """How patches know where they are."""

    def __post_init__(self):
        TransformerConfig.__post_init__(self)
        if self.patch_size < 1:
            raise ConfigError(f"patch_size: expected at least 1, found {self.patch_size}")
        self.position.check_width(self.width, self.num_heads)


class ImageTower(nn.Module):
    """Linear patch embedding, positions, blocks, and masked attention pooling (NaViT §2.1).

    `tokens` gives every patch's vector for dense tasks; `forward` pools them.
    """

    def __init__(self, config: ImageTowerConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.width)
        self.position = make_positions(config.position, config.width, config.num_heads)
        self.transformer = Transformer(config)
        self.pooling = AttentionPooling(config)

    def tokens(self, images: PackedImages) -> Float[Tensor, "tokens dim"]:
        """The vector of every patch after the last norm, in the pack's order."""
        image_index = segment_index(images.offsets, images.num_tokens)
        return self._encode(images, image_index)

    def forward(self, images: PackedImages) -> Float[Tensor, "images dim"]:
        """One vector per image, not normalised."""
        image_index = segment_index(images.offsets, images.num_tokens)
        return self.pooling(self._encode(images, image_index), image_index, len(images))

    def _encode(self, images: PackedImages, image_index: Tensor) -> Float[Tensor, "tokens dim"]:
        # Bytes to [-1, 1]: mean and standard deviation of 0.5, as SigLIP normalises.
        pixels = images.patches.to(self.patch_embedding.weight.dtype) / 127.5 - 1
        with torch.autocast(pixels.device.type, enabled=False):
            # In bfloat16 near positions would round to the same; the blocks add to an fp32 stream.
            position = self.position(images, image_index)
        tokens = self.patch_embedding(pixels)
        if self.config.position.kind == "rope":
            return self.transformer(tokens, images.offsets, images.max_length, turns=position)
        tokens = tokens + position.to(pixels.dtype)
        return self.transformer(tokens, images.offsets, images.max_length)
