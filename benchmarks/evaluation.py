"""How fast an evaluation is: class embeddings beside open_clip's, images beside padded Hugging Face's.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --only text --num_classes 1000 --text_width 128 --text_depth 2 --cold

Text: 80 templates for each of a number of ImageNet's class names, through `eval.prompts.class_embeddings` on
this project's packed text tower, and through open_clip's `build_zero_shot_classifier` on its own tower; both
of one size (unless told otherwise ViT-B/32's, width 512 and 12 layers), random weights. Captions have 12
tokens or so, and open_clip runs each at 77.

Images: pictures of mixed sizes at their native resolution, none scaled up, through this project's packed
image tower; and through `Siglip2ImageProcessor` and `Siglip2VisionModel`, which pad every image to the most
tokens. Preprocessing counts on both sides; decoding on neither. Both towers are of one size and hold the
same weights.

One process, fp32; both take turns, medians of CPU time are compared. `--num_classes 1000` is the whole of
ImageNet: hours for open_clip at ViT-B/32's size on a CPU, minutes at the size above.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from transformers import (
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2TextConfig,
    Siglip2VisionConfig,
)

from benchmarks import turns
from eval.image_config import ImageConfig
from eval.model import PackedModel
from eval.prompts import class_embeddings, load_templates
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
        ours, theirs = (timing.seconds for timing in timings.values())
        figures[name] = {"ours": count / ours, "theirs": count / theirs, "ratio": theirs / ours}
        print(f"{name}: {count / ours:.1f}/s, peer {count / theirs:.1f}/s, {theirs / ours:.2f} times as fast")
        for contender, timing in timings.items():
            print(f"  {contender}: {timing.seconds:.2f} s of CPU time, spread {timing.spread:.0%}")
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
    processor = Siglip2ImageProcessor(patch_size=16, max_num_patches=MOST_TOKENS)

    @torch.no_grad()
    def packed() -> None:
        for start in range(0, num_images, BATCH):
            images = [preparation.prepare(picture, "")[0] for picture in pictures[start : start + BATCH]]
            ours.encode_images(preparation.pack(images))

    @torch.no_grad()
    def padded() -> None:
        for start in range(0, num_images, BATCH):
            inputs = processor(images=pictures[start : start + BATCH], return_tensors="pt")
            peer.vision_model(
                pixel_values=inputs["pixel_values"],
                pixel_attention_mask=inputs["pixel_attention_mask"],
                spatial_shapes=inputs["spatial_shapes"],
            )

    return {"packed": packed, "Siglip2VisionModel": padded}


if __name__ == "__main__":
    main()
