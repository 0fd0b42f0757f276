"""Aspect-preserving sizes in whole patches, and the resize to them.

The rule is SigLIP 2's (arXiv 2502.14786, NaFlex): the image is scaled, up or down, to the largest size at
which rows x columns of patches stay within a number of tokens; each side is rounded up to whole patches.
Grids and pixels equal those of Hugging Face's Siglip2ImageProcessor bit for bit.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

_SCALE_LIMIT = 100.0
_SCALE_STEP = 1e-5


def tokens_of_side(side: int, patch_size: int) -> int:
    """Patches in a square image of this side: NaViT's "resolution r" keeps the aspect and has area r squared.

    Args:
        side: in pixels.
        patch_size: in pixels.
    """
    return max(1, round((side / patch_size) ** 2))


def grid_for(height: int, width: int, patch_size: int, num_tokens: int, longest: int = 0) -> tuple[int, int]:
    """Rows and columns of the largest aspect-preserving grid with at most `num_tokens` patches.

    At least 1 x 1, however long and thin the image is. A scale of 100 is never exceeded, so a tiny image may
    get fewer patches than asked for: this, too, is the rule of the published models.

    Args:
        height: in pixels.
        width: in pixels.
        patch_size: in pixels.
        num_tokens: most patches.
        longest: most patches along a side, to which a longer grid is squeezed; 0 for any number.
    """
    ceil = math.ceil
    low, high = _SCALE_STEP / 10, _SCALE_LIMIT
    while high - low >= _SCALE_STEP:
        middle = (low + high) / 2
        if ceil(height * middle / patch_size) * ceil(width * middle / patch_size) <= num_tokens:
            low = middle
        else:
            high = middle
    rows, columns = ceil(height * low / patch_size), ceil(width * low / patch_size)
    return (min(rows, longest), min(columns, longest)) if longest else (rows, columns)


def native_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of whole patches that hold an image at its own size."""
    return -(-height // patch_size), -(-width // patch_size)


def resize(image: UInt8[np.ndarray, "height width 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Bilinear with antialiasing, in integers, as torchvision resizes bytes on a CPU."""
    if image.shape[:2] == (height, width):
        return image
    # A view whose channels lie together: the layout for which torch has its fast kernel. Indexing with None
    # gives the batch axis another stride than torch looks for, and the result would come in planes.
    planes = torch.from_numpy(image.reshape(1, *image.shape).transpose(0, 3, 1, 2))
    resized = F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    return resized.numpy().transpose(0, 2, 3, 1)[0]
