"""What an evaluation asks of a model, and how our own towers answer.

`JudgedModel` is the protocol; a model of one's own needs nothing else to be judged:

    prepare, pack        pixels -> whatever the model takes, in worker processes
    encode_images        what was packed -> unit vectors
    tokenize             captions -> token ids, whose number is what a caption costs
    encode_captions      token ids -> unit vectors
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from eval.image_config import ImageConfig
from navit_clip.batch import Captions, PackedImages, Patches
from navit_clip.data.patches import cut_grid
from navit_clip.data.resize import grid_for
from navit_clip.model.clip import TwoTowers
from navit_clip.tokenizer import Tokenizer


@runtime_checkable
class Preparation(Protocol):
    """Pixels -> what a model takes. Picklable: it runs in worker processes."""

    @property
    def most_tokens(self) -> int:
        """Tokens that an image has at most: how many fit a forward pass follows from it."""
        ...

    def prepare(self, pixels: UInt8[np.ndarray, "height width 3"], key: str) -> tuple[Any, int]:
        """One image, and how many tokens it has; what is drawn, if anything, depends on the key alone."""
        ...

    def pack(self, images: list[Any]) -> Any:
        """What one forward pass takes, on the host."""
        ...


@runtime_checkable
class JudgedModel(Protocol):
    """A pair of towers that an evaluation can judge."""

    name: str
    """What was asked for, as results show it."""
    pretrained: str
    """Which weights these are."""
    module: nn.Module
    """Holds the weights: they are hashed, and it is in evaluation mode while vectors are made."""
    logit_scale: float
    """What cosines are multiplied with before a softmax."""
    embedding_dim: int
    """Length of the vectors of both towers."""
    precision: str
    """What products are computed in, as results show it: vectors of another precision are others."""

    def preparation(self, config: ImageConfig) -> Preparation:
        """How this model takes images.

        Raises:
            ConfigError: it cannot take them so.
        """
        ...

    def encode_images(self, pack: Any) -> Float[Tensor, "images dim"]:
        """Unit vectors of what `Preparation.pack` packed."""
        ...

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption, at least one; as many as the caption costs."""
        ...

    def encode_captions(self, ids: list[list[int]]) -> Float[Tensor, "captions dim"]:
        """Unit vectors of tokenized captions."""
        ...


class PackedModel:
    """Our towers: images of any size and captions of any length, packed.

    Args:
        model: on the device that it runs on.
        tokenizer: its own.
        name: what was asked for.
        pretrained: which weights these are.
    """

    def __init__(
        self,
        model: TwoTowers,
        tokenizer: Tokenizer,
        name: str = "",
        pretrained: str = "",
    ):
        self.name = name
        self.pretrained = pretrained
        self.module: nn.Module = model
        self.logit_scale = model.logit_scale.detach().float().exp().item()
        self.embedding_dim = model.embedding_dim
        self.precision = str(model.compute_dtype).removeprefix("torch.")
        self._model = model
        self._tokenizer = tokenizer

    def preparation(self, config: ImageConfig) -> PackedPreparation:
        image = self._model.config.image
        return PackedPreparation(image.patch_size, config, image.position.reach)

    def encode_images(self, pack: PackedImages) -> Float[Tensor, "images dim"]:
        return self._model.encode_images(pack.to(self._device)).float()

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.encode(captions, self._model.config.text.context_length)

    def encode_captions(self, ids: list[list[int]]) -> Float[Tensor, "captions dim"]:
        captions = Captions.pack(ids, identity=[0] * len(ids))  # which captions are equal matters to losses
        return self._model.encode_captions(captions.to(self._device)).float()

    @property
    def _device(self) -> torch.device:
        return self._model.logit_scale.device


class PackedPreparation:
    """An image resized to whole patches, its shape kept, and cut."""

    def __init__(self, patch_size: int, config: ImageConfig, longest: int):
        self._patch_size = patch_size
        self._config = config
        self._longest = longest

    @property
    def most_tokens(self) -> int:
        return self._config.tokens_per_image

    def prepare(self, pixels: UInt8[np.ndarray, "height width 3"], key: str) -> tuple[Patches, int]:
        height, width, _ = pixels.shape
        most = self._config.tokens_per_image
        if not self._config.upscale:
            size = self._patch_size
            most = min(most, -(-height // size) * -(-width // size))
        grid = grid_for(height, width, self._patch_size, most, self._longest)
        patches = cut_grid(pixels, self._patch_size, grid, self._kept(grid, key))
        return patches, len(patches)

    def pack(self, images: list[Patches]) -> PackedImages:
        return PackedImages.pack(images)

    def _kept(self, grid: tuple[int, int], key: str) -> np.ndarray | None:
        """Which patches stay, in order; None for all."""
        if self._config.keep == 1:
            return None
        count = grid[0] * grid[1]
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        order = np.random.default_rng(seed).permutation(count)
        return np.sort(order[: max(1, round(self._config.keep * count))])
