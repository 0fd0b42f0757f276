"""Batches as the b16 run draws them: noise of its lengths, filled to a budget."""

from __future__ import annotations

import numpy as np

from benchmarks.gpu.lengths import b16_lengths, fitting
from benchmarks.peers.steps import make_batch
from benchmarks.peers.workload import PATCH_SIZE, Picture, draw_captions
from navit_clip.batch import Batch


def draw_batch(budget: int, seed: int) -> Batch:
    """One batch of so many image tokens, in the host's memory."""
    lengths = np.random.default_rng(seed).permutation(b16_lengths()).tolist()
    pictures = [_row(length, seed) for length in fitting(lengths, budget)]
    return make_batch(pictures, draw_captions(len(pictures), None, seed))


def _row(length: int, seed: int) -> Picture:
    """An image of one row of patches: only its length matters to what a step costs."""
    pixels = np.random.default_rng(seed).integers(0, 256, (length, 3 * PATCH_SIZE**2), dtype=np.uint8)
    position = np.stack([np.zeros(length), np.arange(length)], axis=1).astype(np.int32)
    return Picture(pixels, position, (1, length))
