"""Batches as the b16 run draws them: noise of its lengths, filled to its budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.peers.contender import Machine
from benchmarks.peers.image_towers import pack
from benchmarks.peers.text_towers import pack_captions
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
    budget, pictures, tokens = BUDGET[machine.device.type], [], 0
    for length in np.random.default_rng(seed).permutation(b16_lengths()).tolist():
        if tokens + length <= budget:
            pictures.append(_row(length, seed))
            tokens += length
    captions = draw_captions(len(pictures), None, seed)
    return Batch(pack(pictures), pack_captions(captions), tuple(map(str, range(len(pictures)))))


def _row(length: int, seed: int) -> Picture:
    """An image of one row of patches: only its length matters to what a step costs."""
    pixels = np.random.default_rng(seed).integers(0, 256, (length, 3 * PATCH_SIZE**2), dtype=np.uint8)
    position = np.stack([np.zeros(length), np.arange(length)], axis=1).astype(np.int32)
    return Picture(pixels, position, (1, length))
