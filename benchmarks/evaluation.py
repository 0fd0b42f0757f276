"""How fast an evaluation is: class embeddings beside open_clip's, images beside padded Hugging Face's.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --only text --num_classes 1000 --text_width 128 --text_depth 2 --cold

Text: 80 templates for each of a number of ImageNet's class names, through `eval.prompts.class_embeddings` on
this project's packed text tower, and through open_clip's `build_zero_shot_classifier` on its own tower; both
of one size (unless told otherwise ViT-B/32's, width 512 and 12 layers), random weights. Captions have 12
tokens or so, and open_clip runs each at 77.

Images: pictures of mixed sizes at their native resolution, none scaled up, through this project's packed
image tower; and the very same patches through `Siglip2VisionModel`, once padded as `Siglip2ImageProcessor`
pads, to the most tokens that may come, and once only to the longest image of each batch. (The processor
itself would scale every image up to the most tokens, which is another task.) Cutting patches counts on all
sides; decoding on none. Both towers are of one size and hold the same weights; their vectors are compared
first.

One process, fp32; all take turns, medians of CPU time are compared. `--num_classes 1000` is the whole of
ImageNet: hours for open_clip at ViT-B/32's size on a CPU, minutes at the size above.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor
from transformers import (
    Siglip2Config,
    Siglip2Model,
    Siglip2TextConfig,
    Siglip2VisionConfig,
)

from benchmarks import turns
from eval.image_config import ImageConfig
from eval.model import PackedModel
from eval.prompts import class_embeddings, load_templates
from navit_clip.batch import Patches
from navit_clip.distributed import World
from navit_clip.huggingface.siglip2 import clip_config, clip_weights
from navit_clip.model import ClipConfig, ImageTowerConfig, TextTowerConfig, TwoTowers
from navit_clip.tokenizer import load_tokenizer

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
IMAGE: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
}
SIDES = (64, 512)
"""Smallest and largest side of a picture, in pixels."""
MOST_TOKENS = (SIDES[1] // 16) ** 2
"""Patches of the largest picture that may come, at its own size: the length that Hugging Face pads all to."""
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares evaluation with its peers'.")
    parser.add_argument("--num_classes", type=int, default=50, help="class names of 80 prompts each (50)")
    parser.add_argument("--num_images", type=int, default=48)
    parser.add_argument("--text_width", type=int, default=512, help="of both text towers, in 64s (512)")
    parser.add_argument("--text_depth", type=int, default=12)
    parser.add_argument("--only", choices=["text", "images"])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each after one to warm up")
    parser.add_argument("--cold", action="store_true", help="one turn of each, for runs of minutes")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, fp32")
    torch.manual_seed(0)
    figures, parts = {}, []
    if arguments.only != "images":
        size = arguments.text_width, arguments.text_depth
        contenders = text_contenders(arguments.num_classes, *size)
        parts.append(("class embeddings", contenders, 80 * arguments.num_classes))
    if arguments.only != "text":
        parts.append(("images", image_contenders(arguments.num_images), arguments.num_images))
    for name, contenders, count in parts:
        rounds = 1 if arguments.cold else arguments.rounds
        timings = turns.take_turns(contenders, rounds, clock=time.process_time, warm=not arguments.cold)
        ours = next(iter(timings.values())).seconds
        figures[name] = {contender: count / timing.seconds for contender, timing in timings.items()}
        print(f"{name}:")
        for contender, timing in timings.items():
            print(
                f"  {contender}: {count / timing.seconds:.2f}/s, {timing.seconds:.2f} s of CPU time, spread "
                f"{timing.spread:.0%}; packed is {timing.seconds / ours:.2f} times as fast"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def text_contenders(num_classes: int, width: int, depth: int) -> dict[str, Callable[[], object]]:
    """Ours, then open_clip's."""
    text = TextTowerConfig(
        width=width,
        depth=depth,
        num_heads=width // 64,
        mlp_dim=4 * width,
        vocab_size=49408,
        context_length=77,
        causal=True,
        alignment="left",
        biases=True,
    )
    image = ImageTowerConfig(width=width, depth=1, num_heads=width // 64, mlp_dim=64)
    tower = TwoTowers(ClipConfig(image=image, text=text)).eval()
    ours = PackedModel(tower, load_tokenizer("open_clip"))
    theirs = CLIPTextCfg(width=width, layers=depth, heads=width // 64)
    peer = open_clip.CLIP(width, CLIPVisionCfg(layers=1, width=64), theirs).eval()
    tokenizer = open_clip.SimpleTokenizer()
    names = list(open_clip.IMAGENET_CLASSNAMES[:: max(1, 1000 // num_classes)][:num_classes])
    templates = load_templates(["openai-80"], "imagenet1k")
    return {
        "packed": lambda: class_embeddings(ours, names, templates, ALONE, token_budget=4096),
        "open_clip": lambda: open_clip.build_zero_shot_classifier(peer, tokenizer, names, templates),
    }


def image_contenders(num_images: int) -> dict[str, Callable[[], object]]:
    """Ours, then Hugging Face's."""
    small = {**IMAGE, "num_hidden_layers": 1, "intermediate_size": 64}
    config = Siglip2Config(
        text_config=Siglip2TextConfig(**small, projection_size=384, bos_token_id=None, eos_token_id=None),
        vision_config=Siglip2VisionConfig(**IMAGE, patch_size=16, num_patches=256),
    )
    peer = Siglip2Model(config).eval()
    tower = TwoTowers(clip_config(config)).eval()
    tower.load_state_dict(clip_weights(peer.state_dict(), tower.config))
    ours = PackedModel(tower, load_tokenizer("open_clip"))
    generator = np.random.default_rng(0)
    sizes = generator.integers(*SIDES, size=(num_images, 2), endpoint=True)
    pictures = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    preparation = ours.preparation(ImageConfig(tokens_per_image=MOST_TOKENS, upscale=False))

    def batches() -> Iterator[list[Patches]]:
        for start in range(0, num_images, BATCH):
            yield [preparation.prepare(picture, "")[0] for picture in pictures[start : start + BATCH]]

    @torch.no_grad()
    def packed() -> Tensor:
        return torch.cat([ours.encode_images(preparation.pack(images)) for images in batches()])

    @torch.no_grad()
    def padded(to_longest: bool) -> Tensor:
        vectors = []
        for images in batches():
            length = max(map(len, images)) if to_longest else MOST_TOKENS
            vectors.append(peer.vision_model(**_padded(images, length)).pooler_output)
        return F.normalize(torch.cat(vectors), dim=-1)

    torch.testing.assert_close(padded(to_longest=True), packed(), atol=1e-4, rtol=0)
    return {
        "packed": packed,
        f"Siglip2VisionModel, padded to {MOST_TOKENS}": lambda: padded(to_longest=False),
        "Siglip2VisionModel, padded to the batch's longest": lambda: padded(to_longest=True),
    }


def _padded(images: list[Patches], length: int) -> dict[str, Tensor]:
    """A batch as `Siglip2ImageProcessor` lays it out, each image with the patches that it has here."""
    pixels = torch.zeros(len(images), length, images[0].pixels.shape[1])
    mask = torch.zeros(len(images), length, dtype=torch.int32)
    for row, image in enumerate(images):
        pixels[row, : len(image)] = torch.from_numpy(image.pixels) / 127.5 - 1
        mask[row, : len(image)] = 1
    shapes = torch.tensor([image.grid for image in images])
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


if __name__ == "__main__":
    main()
