"""A small random model, a tokenizer without training, and labelled shards, for tests of evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from eval.model import PackedModel
from navit_clip.data.shards import write_shard
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from tests.data_builders import SIZES, encode_image, noise_picture


def small_model(seed: int = 0) -> TwoTowers:
    """Towers of one block; equal seeds give equal weights."""
    size = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    config = ClipConfig(
        image=ImageTowerConfig(**size, patch_size=4, position=PositionConfig(table_side=4)),
        text=TextTowerConfig(**size, vocab_size=257, context_length=32),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TwoTowers(config)
        with torch.no_grad():
            for parameter in model.parameters():  # far from the initial zeros, so that every input tells
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


class ByteTokenizer:
    """Bytes are ids, and 256 is the end."""

    form = "huggingface"
    vocab_size = 257

    def encode(self, captions: Sequence[str], max_length: int) -> list[list[int]]:
        return [[*caption.encode()[: max_length - 1], 256] for caption in captions]

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def judged(model: TwoTowers | None = None) -> PackedModel:
    """A model as evaluation takes it; without one, the small one."""
    return PackedModel(model or small_model(), ByteTokenizer(), "small", "random")


def picture(number: int) -> bytes:
    """A noise PNG, one of seven sizes."""
    return encode_image(noise_picture(*SIZES[number % len(SIZES)], seed=number))


def write_labelled(path: Path, labels: Sequence[int], broken: Sequence[int] = ()) -> str:
    """A shard with one sample per label; those numbered in `broken` have an image that is not one."""
    write_shard(
        path,
        [
            {
                "__key__": f"sample{number:03d}",
                "png": b"not an image" if number in broken else picture(number),
                "txt": f"a picture called {number}\nthe {number}th of them",
                "cls": str(label),
                "json": f'{{"kind": "class {label}"}}',
            }
            for number, label in enumerate(labels)
        ],
    )
    return str(path)
