"""Batches as the b16 run draws them: noise of its lengths, filled to its budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers.contender import Machine
from benchmarks.peers.steps import make_batch
from benchmarks.peers.workload import PATCH_SIZE, Picture, draw_captions
from navit_clip.batch import Batch
from navit_clip.config import load_config
from training.config import RunConfig
from training.plan.workload import draw_lengths, typical_sizes

RUN = Path(__file__).parent.parent.parent / "configs/run/b16.yaml"
BUDGET = {"cuda": 65536, "cpu": 512}
"""Image tokens of a batch."""


def b16_lengths() -> list[int]:
    """Patches that stay of some images."""
    config = load_config(RunConfig, RUN, ["data.shards=[SHARDS]"])
    return draw_lengths(config, typical_sizes()).tolist()


def draw_batch(machine: Machine, seed: int) -> Batch:
    """One batch, in the host's memory."""
    lengths = np.random.default_rng(seed).permutation(b16_lengths()).tolist()
    pictures = [_row(length, seed) for length in fitting(lengths, BUDGET[machine.device.type])]
    return make_batch(pictures, draw_captions(len(pictures), None, seed))


def fitting(lengths: Sequence[int], budget: int) -> list[int]:
    """One after the other, those that still fit."""
    chosen, tokens = [], 0
    for length in lengths:
        if tokens + length <= budget:
            chosen.append(length)
            tokens += length
    return chosen


def _row(length: int, seed: int) -> Picture:
    """An image of one row of patches: only its length matters to what a step costs."""
    pixels = np.random.default_rng(seed).integers(0, 256, (length, 3 * PATCH_SIZE**2), dtype=np.uint8)
    position = np.stack([np.zeros(length), np.arange(length)], axis=1).astype(np.int32)
    return Picture(pixels, position, (1, length))
