"""Image towers of the same shapes: ours on a pack, the peers' on padded rows.

Padded rows come in two lengths: the longest that any image of the case may have, which is what the peers'
processors and compiled graphs pad to, and the longest of this very batch, which is the least that padding
can do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.peers.contender import Contender, Machine
from benchmarks.peers.workload import PATCH_SIZE, Picture, Size
from navit_clip.batch import PackedImages, Patches
from navit_clip.data.patches import picture_of
from navit_clip.model import ImageTower, ImageTowerConfig, PositionConfig
from navit_clip.model.initialization import initialize


def image_towers(size: Size, pictures: Sequence[Picture], most_tokens: int) -> list[Contender]:
    """Everyone, on these images."""
    lengths = sorted({most_tokens, max(len(picture.pixels) for picture in pictures)}, reverse=True)
    padded = [
        contender
        for length in lengths
        for contender in (
            Contender(f"timm, {length} a row", "timm", partial(_timm, size, pictures, length, False)),
            Contender(
                f"HF Siglip2, {length} a row", "transformers", partial(_siglip2, size, pictures, length)
            ),
        )
    ]
    compiled = Contender(
        f"timm compiled, {most_tokens} a row", "timm", partial(_timm, size, pictures, most_tokens, True)
    )
    vit_pytorch = Contender("vit-pytorch NaViT", "vit_pytorch", partial(_vit_pytorch, size, pictures))
    return [
        Contender("packed", "navit_clip", partial(_packed, size, pictures, False)),
        *padded,
        Contender("packed compiled", "navit_clip", partial(_packed, size, pictures, True)),
        compiled,
        vit_pytorch,
    ]


def tower_config(size: Size) -> ImageTowerConfig:
    """Ours, with biases and SigLIP 2's grid of positions as the peers have them."""
    position = PositionConfig(kind="grid", table_side=16)
    return ImageTowerConfig(**size._asdict(), biases=True, patch_size=PATCH_SIZE, position=position)


def pack(pictures: Sequence[Picture]) -> PackedImages:
    """Longest first, as the loader has them."""
    ordered = sorted(pictures, key=lambda picture: -len(picture.pixels))
    return PackedImages.pack([Patches(picture.pixels, picture.position, picture.grid) for picture in ordered])


def raster(picture: Picture) -> Tensor:
    """Pixels from -1 to 1, float32 [3, height, width], of the grid that peers are told."""
    return picture_of(Patches(picture.pixels, picture.position, picture.shown_grid), PATCH_SIZE)


def _packed(
    size: Size, pictures: Sequence[Picture], compiled: bool, machine: Machine
) -> Callable[[], Tensor]:
    tower = ImageTower(tower_config(size))
    initialize(tower)
    if compiled:  # as engine.compile does
        tower.transformer.compile_blocks()
    tower.to(machine.device)
    images = pack(pictures).to(machine.device)
    return lambda: tower(images)


def _timm(
    size: Size, pictures: Sequence[Picture], length: int, compiled: bool, machine: Machine
) -> Callable[[], Tensor]:
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

    config = NaFlexVitCfg(
        patch_size=PATCH_SIZE,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_ratio=size.mlp_dim / size.width,
        act_layer="gelu_tanh",
    )
    tower = NaFlexVit(config, num_classes=0).to(machine.device)
    patches, valid = _padded(pictures, length)
    places = [torch.cartesian_prod(*map(torch.arange, picture.shown_grid)) for picture in pictures]
    inputs = [part.to(machine.device) for part in (patches, _pad(places, length), valid)]
    forward = torch.compile(tower, dynamic=False) if compiled else tower
    return lambda: forward(*inputs)


def _siglip2(size: Size, pictures: Sequence[Picture], length: int, machine: Machine) -> Callable[[], Tensor]:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    config = Siglip2VisionConfig(
        hidden_size=size.width,
        intermediate_size=size.mlp_dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        patch_size=PATCH_SIZE,
    )
    tower = Siglip2VisionModel(config)
    tower.to(device=machine.device)  # pyright: ignore[reportCallIssue]
    patches, valid = (part.to(machine.device) for part in _padded(pictures, length))
    grids = torch.tensor([picture.shown_grid for picture in pictures], device=machine.device)
    return lambda: tower(patches, valid.int(), grids).pooler_output


def _vit_pytorch(size: Size, pictures: Sequence[Picture], machine: Machine) -> Callable[[], Tensor]:
    """Packs by itself, into padded rows of up to 2048 tokens: its own default."""
    from vit_pytorch.na_vit import NaViT  # pyright: ignore[reportMissingImports] (an extra: peers)

    sides = [max(picture.shown_grid[axis] for picture in pictures) * PATCH_SIZE for axis in (0, 1)]
    tower = NaViT(
        image_size=tuple(sides),
        patch_size=PATCH_SIZE,
        num_classes=size.width,
        dim=size.width,
        depth=size.depth,
        heads=size.num_heads,
        mlp_dim=size.mlp_dim,
        dim_head=size.width // size.num_heads,
    ).to(machine.device)
    rasters = [raster(picture).contiguous().to(machine.device) for picture in pictures]
    return lambda: tower(rasters, group_images=True)


def _padded(pictures: Sequence[Picture], length: int) -> tuple[Tensor, Tensor]:
    """Normalised patches [images, length, patch_dim], and which of them are real."""
    real = [torch.ones(len(picture.pixels), dtype=torch.bool) for picture in pictures]
    return _pad([_normalised(picture) for picture in pictures], length), _pad(real, length)


def _pad(sequences: Sequence[Tensor], length: int) -> Tensor:
    """Sequences as the rows of one tensor, zeros after their ends."""
    rows = sequences[0].new_zeros(len(sequences), length, *sequences[0].shape[1:])
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows


def _normalised(picture: Picture) -> Tensor:
    return torch.from_numpy(picture.pixels) / 127.5 - 1
