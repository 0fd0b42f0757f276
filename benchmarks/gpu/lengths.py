"""Patches of images as the b16 run draws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers.workload import PATCH_SIZE
from navit_clip.config import load_config
from navit_clip.data import DataConfig
from navit_clip.data.drawn import draw_size

RUN = Path(__file__).parent.parent.parent / "configs/run/b16.yaml"
SHAPES = ((500, 375), (375, 500), (500, 333), (333, 500), (500, 500))
"""Height and width of photographs."""
IMAGES = 4096


def b16_lengths() -> list[int]:
    """Patches that stay of some images; mean 53."""
    data = load_config(DataConfig, RUN, ["data.shards=[SHARDS]"], section="data")
    random = np.random.default_rng(0)
    shapes = [SHAPES[index] for index in random.integers(len(SHAPES), size=IMAGES)]
    return [draw_size(data, random, 0, height, width, PATCH_SIZE).num_kept for height, width in shapes]


def fitting(lengths: Sequence[int], budget: int) -> list[int]:
    """One after the other, those that still fit."""
    chosen, tokens = [], 0
    for length in lengths:
        if tokens + length <= budget:
            chosen.append(length)
            tokens += length
    return chosen
