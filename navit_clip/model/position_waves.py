"""Positions that are sines and cosines of coordinates: defined for any image, with no table to run out of."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from navit_clip.batch import PackedImages
from navit_clip.model.coordinates import Coordinates, locate

LONGEST_WAVE = 10_000.0
"""Slowest over fastest angle of sinusoidal positions, as in "Attention is all you need"."""
LONGEST_TURN = 100.0
"""The same of rotary ones: grids are tens of patches long, not thousands (2403.13298)."""


class SinusoidalPositions(nn.Module):
    """Fixed waves of the row, then as many of the column: NaViT's "sinusoidal (stack)".

    NaViT has the fractional ones by interpolating a table of the absolute; here the waves are evaluated at
    the fraction itself.
    """

    def __init__(self, width: int, table_side: int, coordinates: Coordinates):
        super().__init__()
        self.width = width
        self.table_side = table_side
        self.coordinates: Coordinates = coordinates

    def forward(
        self, images: PackedImages, image_index: Int64[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens dim"]:
        place = locate(images, image_index, self.coordinates, self.table_side)
        angles = place[..., None] * geometric(self.width // 4, LONGEST_WAVE, place.device)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


class FourierPositions(nn.Module):
    """Waves along learned directions of (row, column): sines and cosines of a linear map (Tancik et al.)."""

    def __init__(self, width: int, table_side: int, coordinates: Coordinates):
        super().__init__()
        self.table_side = table_side
        self.coordinates: Coordinates = coordinates
        self.frequencies = nn.Parameter(torch.empty(2, width // 2))

    def forward(
        self, images: PackedImages, image_index: Int64[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens dim"]:
        place = locate(images, image_index, self.coordinates, self.table_side)
        angles = place @ self.frequencies.to(place.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class RotaryPositions(nn.Module):
    """Axial RoPE (2403.13298): in attention half of a head is turned by the row and half by the column.

    Nothing is added to a patch. What comes out goes to every block, which turns its queries and keys by it:
    the products of the two then depend on the differences of coordinates alone.
    """

    def __init__(self, head_dim: int, table_side: int, coordinates: Coordinates):
        super().__init__()
        self.head_dim = head_dim
        self.table_side = table_side
        self.coordinates: Coordinates = coordinates

    def forward(
        self, images: PackedImages, image_index: Int64[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens 2 pairs"]:
        place = locate(images, image_index, self.coordinates, self.table_side)
        angles = (place[..., None] * geometric(self.head_dim // 4, LONGEST_TURN, place.device)).flatten(1)
        return torch.stack([angles.cos(), angles.sin()], dim=1)


def rotate(
    vectors: Float[Tensor, "tokens heads head_dim"], turns: Float[Tensor, "tokens 2 pairs"]
) -> Float[Tensor, "tokens heads head_dim"]:
    """Turns value i of every head with value i + head_dim / 2, by the cosine and sine of pair i."""
    first, second = vectors.chunk(2, dim=-1)
    cosine, sine = turns[:, 0, None], turns[:, 1, None]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def geometric(number: int, longest: float, device: torch.device) -> Float[Tensor, " number"]:
    """Angles a step, from 1 down to almost 1 / longest, in equal ratios."""
    return longest ** (-torch.arange(number, device=device) / number)
