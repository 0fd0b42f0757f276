"""Whole training steps: both towers, the loss, the gradient, clipping and AdamW.

Ours is the training loop's own step, on DeepSpeed; open_clip's is what its training script does with
ViT-B-16-SigLIP: its towers, its loss, its AdamW. Both clip the gradient's norm at 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch import Tensor

from benchmarks.peers.contender import Machine
from benchmarks.peers.image_towers import pack, raster
from benchmarks.peers.image_towers import tower_config as image_config
from benchmarks.peers.text_towers import open_clip_text, pack_captions, padded_captions
from benchmarks.peers.text_towers import tower_config as text_config
from benchmarks.peers.workload import PATCH_SIZE, Picture, Size
from navit_clip.batch import Batch, map_tensors
from navit_clip.distributed import World
from navit_clip.loss import LossConfig
from navit_clip.model import ClipConfig, TwoTowers
from training.engine import Engine, EngineConfig
from training.gradient import accumulate_gradient
from training.optimizer import OptimizerConfig, make_optimizer

CLIPPING = 1.0
LEARNING_RATE = 0.0
"""The optimizer does all of its work and weights stay as they are: a few pairs learnt by heart leave
gradients so small that a CPU computes with denormal numbers, many times slower."""
TIMM_TOWERS = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_siglip_224"}
"""timm's names for towers of a width at 224 px; the sizes of the others are given here."""


def model_config(size: Size) -> ClipConfig:
    """Both towers of one size."""
    return ClipConfig(image=image_config(size), text=text_config(size))


def make_batch(pictures: Sequence[Picture], captions: Sequence[list[int]]) -> Batch:
    """In the host's memory."""
    return Batch(pack(pictures), pack_captions(captions), tuple(map(str, range(len(pictures)))))


def packed_step(
    model: ClipConfig, batches: Sequence[Batch], engine_config: EngineConfig, world: World
) -> Callable[[], object]:
    """One step of the training loop, on one batch after the other, from the host's memory on.

    For a GPU that memory is pinned, as the loader's is.
    """
    towers = TwoTowers(model)
    engine = Engine(engine_config, towers, make_optimizer(OptimizerConfig(), towers), world)
    if world.device.type == "cuda":
        batches = [map_tensors(batch, Tensor.pin_memory) for batch in batches]
    in_turn = cycle(batches)

    def run() -> None:
        batch = next(in_turn)
        counts = world.counts(len(batch))
        accumulate_gradient(engine, [batch.to(world.device)], counts, LossConfig(), world)
        engine.step(LEARNING_RATE)

    return run


def open_clip_step(
    size: Size, pictures: Sequence[Picture], captions: Sequence[list[int]], machine: Machine
) -> Callable[[], object]:
    """open_clip's on the same images, squares of one size, and captions padded to 64."""
    from open_clip.loss import SigLipLoss
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    side = pictures[0].grid[0] * PATCH_SIZE
    towers = CustomTextCLIP(
        embed_dim=size.width,
        init_logit_bias=-10,
        vision_cfg=CLIPVisionCfg(
            image_size=side,
            timm_model_name=TIMM_TOWERS[size.width],
            timm_model_pretrained=False,
            timm_pool="map",
            timm_proj="none",
        ),
        text_cfg=CLIPTextCfg(**open_clip_text(size), norm_kwargs={"eps": 1e-6}),
    ).to(machine.device)
    loss_function = SigLipLoss()
    flat = [parameter for parameter in towers.parameters() if parameter.ndim < 2]
    matrices = [parameter for parameter in towers.parameters() if parameter.ndim >= 2]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 1e-4}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    images = torch.stack([raster(picture) for picture in pictures])
    ids = padded_captions(captions)

    def run() -> None:
        optimizer.zero_grad()
        with machine.autocast:
            image, text, scale, bias = towers(images.to(machine.device), ids.to(machine.device))
            loss = loss_function(image, text, scale, bias)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), CLIPPING)
        optimizer.step()

    return run
