"""Packs of noise for tests of the towers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from navit_clip.batch import Captions, PackedImages, Patches


def noise_image(rows: int, columns: int, patch_size: int, seed: int, keep: float = 1.0) -> Patches:
    """An image of random pixels with a random share of its patches kept, at least one."""
    rng = np.random.default_rng(seed)
    position = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    position = position.reshape(-1, 2).astype(np.int32)
    kept = np.sort(rng.permutation(len(position))[: max(1, round(keep * len(position)))])
    pixels = rng.integers(0, 256, (len(kept), 3 * patch_size**2), dtype=np.uint8)
    return Patches(pixels, position[kept], (rows, columns))


def noise_images(grids: Sequence[tuple[int, int]], patch_size: int, keep: float = 1.0) -> list[Patches]:
    """One image of noise for each (rows, columns)."""
    return [noise_image(*grid, patch_size, seed, keep) for seed, grid in enumerate(grids)]


def patches_of_pixels(inputs: dict) -> list[Patches]:
    """The images that are in what Siglip2ImageProcessor makes, padded to one length."""
    images = []
    for row, grid in zip(inputs["pixel_values"], inputs["spatial_shapes"], strict=True):
        rows, columns = grid.tolist()
        pixels = ((row[: rows * columns] + 1) * 127.5).round().to(torch.uint8).numpy()
        position = np.indices((rows, columns), dtype=np.int32).reshape(2, -1).T.copy()
        images.append(Patches(pixels, position, (rows, columns)))
    return images


def noise_captions(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random token ids for captions of the lengths given."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def pack(images: Sequence[Patches]) -> PackedImages:
    return PackedImages.pack(list(images))


def pack_captions(captions: Sequence[Sequence[int]]) -> Captions:
    return Captions.pack(captions, identity=range(len(captions)))
