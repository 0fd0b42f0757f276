"""What models have in common that take every image at one size: a transform, and settings to refuse."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from eval.image_config import ImageConfig
from navit_clip.errors import ConfigError


class TransformPreparation:
    """A transform of Pillow images to tensors of one shape.

    Args:
        transform: picklable.
        most_tokens: patches of the shape that it gives.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], most_tokens: int):
        self._transform = transform
        self.most_tokens = most_tokens

    def prepare(self, pixels: UInt8[np.ndarray, "height width 3"], key: str) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(pixels)), self.most_tokens

    def pack(self, images: list[Tensor]) -> Tensor:
        return torch.stack(images)


def refuse_packed_settings(config: ImageConfig, name: str) -> None:
    """For models that take every image at one size.

    Raises:
        ConfigError: a setting asks for what only packed models do.
    """
    for setting, neutral in (("upscale", True), ("keep", 1.0)):
        if getattr(config, setting) != neutral:
            raise ConfigError(
                f"{setting}: {name} takes every image at one size; expected {str(neutral).lower()}, "
                f"found {str(getattr(config, setting)).lower()}"
            )


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Products in `dtype`; nothing at all for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
