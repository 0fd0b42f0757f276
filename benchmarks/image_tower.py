"""How fast the packed image tower is, beside the peers' towers and beside the machine.

    python benchmarks/image_tower.py

One process, one set of images, weights of the same shapes (ViT-S/16): forward and backward of the packed
tower, of timm's NaFlexViT and Hugging Face's Siglip2VisionModel on the padded batch with its mask, and of
vit-pytorch's NaViT, which packs into padded rows. All take turns, and medians are printed, so that whatever
else the machine does falls on all alike. Every model gets its input ready made; fp32.

Two cases: 64 images whose sides are drawn from 64 to 320 px, and 24 of nearly equal size. The padded batch of
the first is as long as the largest image that may come, 400 patches: the peers' processors pad to a fixed
length. That of the second is as long as its longest image.

Utilisation is the packed tower's floating-point operations a second, counted on the tokens that there are,
over those of a large matrix product that takes its turn in the same rounds.

Needs the peers: pip install 'navit-clip[peers]' (timm comes with open_clip).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import Tensor, nn
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from vit_pytorch.na_vit import NaViT  # pyright: ignore[reportMissingImports] (an extra: see above)

from navit_clip.batch import PackedImages, Patches
from navit_clip.model import ImageTower, ImageTowerConfig, PositionConfig
from navit_clip.model.flops import image_tower_flops
from navit_clip.model.initialization import initialize

PATCH_SIZE, WIDTH, DEPTH, HEADS, MLP_DIM = 16, 384, 12, 6, 1536
TOWER = ImageTowerConfig(
    width=WIDTH,
    depth=DEPTH,
    num_heads=HEADS,
    mlp_dim=MLP_DIM,
    biases=True,
    patch_size=PATCH_SIZE,
    position=PositionConfig(kind="grid", table_side=16),
)
MATRIX_SIDE = 2048


class Case(NamedTuple):
    name: str
    num_images: int
    sides: tuple[int, int]
    """Smallest and largest side in pixels; what does not fill a patch is cut off."""
    most_tokens: int
    """Of an image with the largest sides: the row of a padded batch whose shape stays the same."""


CASES = (Case("mixed", 64, (64, 320), 20 * 20), Case("near-equal", 24, (208, 239), 14 * 14))


class Contender(NamedTuple):
    name: str
    model: nn.Module
    forward: Callable[[], Tensor]
    """Images in, one vector per image out."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares towers on one set of images.")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, ViT-S/{PATCH_SIZE}, fp32")
    figures = {}
    for case in CASES:
        images = draw_images(case, arguments.seed)
        longest = max(image.shape[0] * image.shape[1] for image in images)
        figures[case.name] = compare(images, sorted({case.most_tokens, longest}), arguments.rounds)
        print_table(case, images, figures[case.name])
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def draw_images(case: Case, seed: int) -> list[np.ndarray]:
    """Noise of shape [rows, columns, patch_dim] bytes, each side drawn on its own."""
    rng = np.random.default_rng(seed)
    low, high = case.sides
    grids = rng.integers(low, high, size=(case.num_images, 2), endpoint=True) // PATCH_SIZE
    return [rng.integers(0, 256, (*grid, 3 * PATCH_SIZE**2), dtype=np.uint8) for grid in grids]


def compare(images: list[np.ndarray], padded_lengths: list[int], rounds: int) -> dict[str, dict[str, float]]:
    """Images a second of every tower, and the packed one's share of the matrix-product rate.

    The padded towers run on rows of each of the lengths: the longest image's, as a batch collated for itself
    has it, and the longest possible one's, as their own processors and compiled graphs have it.
    """
    padded_towers = [
        tower(images, length) for length in padded_lengths for tower in (timm_naflexvit, siglip2)
    ]
    contenders = [packed(images), *padded_towers, vit_pytorch_navit(images)]
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE)
    product_seconds: list[float] = []
    for turn in range(rounds + 1):
        for contender in contenders:
            elapsed = timed(lambda contender=contender: step(contender))
            if turn:  # the first round warms up
                seconds[contender.name].append(elapsed)
        product_seconds.append(timed(lambda: matrix @ matrix))
    rate = 2 * MATRIX_SIDE**3 / statistics.median(product_seconds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = medians["packed"]
    return {
        name: {
            "images_per_second": len(images) / median,
            "packed_is_faster_by": median / ours,
            "spread": (max(seconds[name]) - min(seconds[name])) / median,
        }
        for name, median in medians.items()
    } | {"machine": {"product_flops": rate, "utilisation": count_flops(images) / ours / rate}}


def step(contender: Contender) -> None:
    contender.model.zero_grad()
    contender.forward().square().mean().backward()


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def packed(images: list[np.ndarray]) -> Contender:
    """This project's tower, with biases and SigLIP 2's grid positions as the peers have them."""
    tower = ImageTower(TOWER)
    initialize(tower)
    batch = PackedImages.pack(
        [
            Patches(image.reshape(-1, image.shape[-1]), positions(image), (image.shape[0], image.shape[1]))
            for image in images
        ]
    )
    return Contender("packed", tower, lambda: tower(batch))


def timm_naflexvit(images: list[np.ndarray], length: int) -> Contender:
    config = NaFlexVitCfg(
        patch_size=PATCH_SIZE, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=MLP_DIM / WIDTH
    )
    tower = NaFlexVit(config, num_classes=0)
    patches, valid = padded(images, length)
    coordinates = pad([torch.from_numpy(positions(image)).long() for image in images], length)
    return Contender(f"timm NaFlexVit, {length} a row", tower, lambda: tower(patches, coordinates, valid))


def siglip2(images: list[np.ndarray], length: int) -> Contender:
    config = Siglip2VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=MLP_DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        patch_size=PATCH_SIZE,
    )
    tower = Siglip2VisionModel(config)
    patches, valid = padded(images, length)
    grids = torch.tensor([image.shape[:2] for image in images])
    name = f"HF Siglip2VisionModel, {length} a row"
    return Contender(name, tower, lambda: tower(patches, valid.int(), grids).pooler_output)


def vit_pytorch_navit(images: list[np.ndarray]) -> Contender:
    tower = NaViT(
        image_size=20 * PATCH_SIZE,
        patch_size=PATCH_SIZE,
        num_classes=WIDTH,
        dim=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        mlp_dim=MLP_DIM,
        dim_head=WIDTH // HEADS,
    )
    pictures = [
        rearrange(as_float(image), "h w (p q c) -> c (h p) (w q)", p=PATCH_SIZE, q=PATCH_SIZE).contiguous()
        for image in images
    ]
    return Contender("vit-pytorch NaViT", tower, lambda: tower(pictures, group_images=True))


def padded(images: list[np.ndarray], length: int) -> tuple[Tensor, Tensor]:
    """Normalised patches [images, length, patch_dim], and which of them are real."""
    patches = [as_float(image).flatten(0, 1) for image in images]
    return pad(patches, length), pad([torch.ones(len(image), dtype=torch.bool) for image in patches], length)


def pad(sequences: list[Tensor], length: int) -> Tensor:
    """Sequences as the rows of one tensor, zeros after their ends."""
    rows = sequences[0].new_zeros(len(sequences), length, *sequences[0].shape[1:])
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows


def as_float(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image) / 127.5 - 1


def positions(image: np.ndarray) -> np.ndarray:
    """Row and column of every patch, int32 [tokens, 2]."""
    return np.indices(image.shape[:2], dtype=np.int32).reshape(2, -1).T.copy()


def count_flops(images: list[np.ndarray]) -> float:
    """Operations of the packed tower's forward and backward, on real tokens."""
    lengths = torch.tensor([image.shape[0] * image.shape[1] for image in images])
    return image_tower_flops(TOWER, lengths, backward=True)


def print_table(case: Case, images: list[np.ndarray], figures: dict[str, dict[str, float]]) -> None:
    lengths = [image.shape[0] * image.shape[1] for image in images]
    print(
        f"\n{case.name}: {len(images)} images, sides {case.sides[0]}-{case.sides[1]} px, "
        f"{min(lengths)}-{max(lengths)} tokens (mean {statistics.mean(lengths):.0f})\n"
    )
    print("| tower | images/s | packed is faster by | spread |")
    print("|---|---|---|---|")
    for name, row in figures.items():
        if name != "machine":
            print(
                f"| {name} | {row['images_per_second']:.1f} | {row['packed_is_faster_by']:.2f}x "
                f"| {row['spread']:.0%} |"
            )
    machine = figures["machine"]
    print(
        f"\nmatrix product {machine['product_flops'] / 1e9:.0f} GFLOP/s; "
        f"the packed tower runs at {machine['utilisation']:.0%} of it"
    )


if __name__ == "__main__":
    main()
