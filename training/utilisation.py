"""Model FLOP utilisation: the towers' operations on real tokens over what matrix products reach here.

Counted are the forward and backward passes of `navit_clip.model.flops` on the tokens that there are: nothing
padded, nothing computed twice (activation checkpoints, accumulation), nothing of a frozen tower's backward.
"""

from __future__ import annotations

import time

import torch

from navit_clip.batch import Batch
from navit_clip.model import TOWERS, ClipConfig
from navit_clip.model.flops import image_tower_flops, text_tower_flops
from training.optimizer import OptimizerConfig

PEAKS = {
    "A100": 312e12,
    "A10": 125e12,
    "L4": 121e12,
    "L40S": 362e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
"""Dense bfloat16 operations a second by NVIDIA's data sheets, for names that contain these words."""

SIDE = 1024
"""Of the matrices that are multiplied where a machine is not in the table."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that one rank's matrix products can reach: by the table, else as measured now."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = [words for words in PEAKS if words in name]
        if known:
            return PEAKS[max(known, key=len)]
    left, right = (torch.ones(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    return 2 * SIDE**3 / min(_seconds(left, right) for _ in range(5))


def model_flops(model: ClipConfig, optimizer: OptimizerConfig, batch: Batch) -> float:
    """Operations of a step's passes over a batch that is still on the host."""
    trained = {tower: not getattr(optimizer, tower).freeze for tower in TOWERS}
    images, captions = batch.images.offsets.diff(), batch.captions.offsets.diff()
    return image_tower_flops(model.image, images, backward=trained["image"]) + text_tower_flops(
        model.text, model.image.width, captions, backward=trained["text"]
    )


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    (left @ right)[0, 0].item()  # waits for the device
    return time.perf_counter() - start
