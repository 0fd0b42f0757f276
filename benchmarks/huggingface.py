"""SigLIP 2 imported and packed beside transformers' own, padded: images per second on mixed sizes.

One process, one Siglip2VisionModel of random weights (ViT-S/16) and the same imported into the packed tower,
one set of images whose sides are drawn from 64 to 320 px. transformers gets them padded to the most patches
that an image may have, as its processor pads; the packed tower gets them as they are. Both take turns, in
inference, fp32; medians. Their outputs are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Siglip2Config, Siglip2Model, Siglip2TextConfig, Siglip2VisionConfig

from benchmarks import turns
from navit_clip.batch import PackedImages, Patches
from navit_clip.huggingface.siglip2 import clip_config, clip_weights
from navit_clip.model import TwoTowers

PATCH_SIZE = 16
SIDES = (64, 320)
MOST_PATCHES = (SIDES[1] // PATCH_SIZE) ** 2
TOWER: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
}
BOUND = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares packed and padded SigLIP 2.")
    parser.add_argument("--num_images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each, after one to warm up")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    images = draw_images(arguments.num_images, arguments.seed)
    padded, packed = contenders(images)
    difference = float((padded() - packed()).abs().max())
    if not difference <= BOUND:
        raise SystemExit(f"the outputs differ by {difference:.1e}, expected at most {BOUND:.0e}")
    timings = turns.take_turns({"padded": padded, "packed": packed}, arguments.rounds)
    lengths = [len(image) for image in images]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; {len(images)} images of "
        f"{min(lengths)} to {max(lengths)} patches (mean {statistics.mean(lengths):.0f}), "
        f"padded to {MOST_PATCHES}"
    )
    for name, timing in timings.items():
        print(f"{name}: {len(images) / timing.seconds:.1f} images/s, spread {timing.spread:.0%}")
    ratio = timings["padded"].seconds / timings["packed"].seconds
    print(f"packed is {ratio:.2f} times as fast; outputs differ by {difference:.1e}")


def draw_images(number: int, seed: int) -> list[Patches]:
    """Noise, each side drawn on its own."""
    rng = np.random.default_rng(seed)
    images = []
    for rows, columns in rng.integers(*SIDES, size=(number, 2), endpoint=True) // PATCH_SIZE:
        position = np.indices((rows, columns), dtype=np.int32).reshape(2, -1).T.copy()
        pixels = rng.integers(0, 256, (rows * columns, 3 * PATCH_SIZE**2), dtype=np.uint8)
        images.append(Patches(pixels, position, (int(rows), int(columns))))
    return images


def contenders(images: list[Patches]) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """transformers' tower and ours, each from ready input to unit vectors."""
    torch.manual_seed(0)
    text = Siglip2TextConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=64,
        projection_size=TOWER["hidden_size"], pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    theirs = Siglip2Model(
        Siglip2Config(vision_config=Siglip2VisionConfig(**TOWER, patch_size=PATCH_SIZE), text_config=text)
    ).eval()
    config = clip_config(theirs.config)
    ours = TwoTowers(config).eval()
    ours.load_state_dict(clip_weights(theirs.state_dict(), config))

    pack = PackedImages.pack(images)
    rows = torch.zeros(len(images), MOST_PATCHES, 3 * PATCH_SIZE**2)
    mask = torch.zeros(len(images), MOST_PATCHES, dtype=torch.long)
    for row, valid, image in zip(rows, mask, images, strict=True):
        row[: len(image)] = torch.from_numpy(image.pixels) / 127.5 - 1
        valid[: len(image)] = 1
    grids = torch.tensor([image.grid for image in images])

    @torch.no_grad()
    def padded() -> Tensor:
        pooled = theirs.vision_model(rows, mask, grids).pooler_output
        return torch.nn.functional.normalize(pooled, dim=-1)

    @torch.no_grad()
    def packed() -> Tensor:
        return ours.encode_images(pack)

    return padded, packed


if __name__ == "__main__":
    main()
