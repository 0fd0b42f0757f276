"""The pair of towers and the two scalars that join them."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from navit_clip.batch import Batch, Captions, Embeddings, PackedImages
from navit_clip.errors import ConfigError
from navit_clip.model.image_tower import ImageTower, ImageTowerConfig
from navit_clip.model.initialization import initialize
from navit_clip.model.text_tower import TextTower, TextTowerConfig

Tower = Literal["image", "text"]
TOWERS: tuple[Tower, ...] = get_args(Tower)
"""What the towers are called in a model, in its config and in the names of its weights."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A model: both towers, and where the logits' scale and bias start (SigLIP §3.2)."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    """The image tower."""
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    """The text tower."""
    initial_logit_scale: float = 10.0
    """exp(t') before training."""
    initial_logit_bias: float = -10.0
    """b before training."""

    def __post_init__(self):
        if self.initial_logit_scale <= 0:
            raise ConfigError(f"initial_logit_scale: expected above 0, found {self.initial_logit_scale}")


class TwoTowers(nn.Module):
    """logits = exp(logit_scale) * <image, text> + logit_bias, for unit vectors from the two towers."""

    compute_dtype: torch.dtype = torch.float32
    """What the towers' matrix products and attention run in, under autocast where it is not float32; the
    weights stay as they are. Not part of the config: whoever runs a model sets it, as `choose_backend`."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        self.image = ImageTower(config.image)
        self.text = TextTower(config.text, embedding_dim=config.image.width)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(config.initial_logit_scale)]))
        self.logit_bias = nn.Parameter(torch.tensor([config.initial_logit_bias]))
        initialize(self)

    @property
    def embedding_dim(self) -> int:
        """Length of the vectors that both towers give."""
        return self.config.image.width

    def encode_images(self, images: PackedImages) -> Float[Tensor, "images dim"]:
        """Unit vectors in fp32 of the images of a pack."""
        with self._autocast():
            vectors = self.image(images)
        return _unit(vectors)

    def encode_captions(self, captions: Captions) -> Float[Tensor, "captions dim"]:
        """Unit vectors in fp32 of the captions of a pack."""
        with self._autocast():
            vectors = self.text(captions)
        return _unit(vectors)

    def forward(self, batch: Batch) -> Embeddings:
        """Unit vectors of a batch's images and captions, pair by pair, and what turns them into logits."""
        return Embeddings(
            image=self.encode_images(batch.images),
            text=self.encode_captions(batch.captions),
            identity=batch.captions.identity,
            # New tensors, not the parameters: ZeRO-3 takes parameters away when this forward ends.
            logit_scale=self.logit_scale.float().exp(),
            logit_bias=self.logit_bias.float().clone(),
        )

    def _autocast(self) -> AbstractContextManager:
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.logit_scale.device.type, self.compute_dtype)


def _unit(vectors: Float[Tensor, "vectors dim"]) -> Float[Tensor, "vectors dim"]:
    """In fp32: eight bits of a unit vector would move a logit by tenths."""
    return F.normalize(vectors.float(), dim=-1)
