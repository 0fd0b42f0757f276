"""The same steps for any ranks: a stream that is cut for four, of which fewer ranks take several parts."""

from __future__ import annotations

import torch

from navit_clip.batch import Batch, Captions, PackedImages
from navit_clip.data import TrainLoader
from navit_clip.distributed import World
from navit_clip.loss import LossConfig
from navit_clip.model import TwoTowers
from navit_clip.tokenizer import load_tokenizer
from training.config import RunConfig
from training.engine import Engine
from training.gradient import Contrast, accumulate_gradient

PARTS = 4
LEARNING_RATE = 1e-3


def make_model(config: RunConfig) -> TwoTowers:
    """The same weights at each call."""
    torch.manual_seed(0)
    return TwoTowers(config.model)


def make_parts(config: RunConfig, steps: int, world: World) -> list[list[Batch]]:
    """For each step the parts that a rank's batches are made of: its share of them all."""
    image, text = config.model.image, config.model.text
    tokenizer = load_tokenizer(config.tokenizer)
    own = PARTS // world.size
    loaders = [
        iter(TrainLoader(config.data, tokenizer, image.patch_size, text.context_length, 0, part, PARTS))
        for part in range(own * world.rank, own * (world.rank + 1))
    ]
    return [[next(loader) for loader in loaders] for _ in range(steps)]


def joined(batches: list[Batch]) -> Batch:
    """Batches as one batch, in order."""

    def end_to_end(offsets: list[torch.Tensor]) -> torch.Tensor:
        lengths = torch.cat([part.diff() for part in offsets])
        return torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0, dtype=torch.int32)])

    images, captions = [batch.images for batch in batches], [batch.captions for batch in batches]
    return Batch(
        images=PackedImages(
            patches=torch.cat([part.patches for part in images]),
            position=torch.cat([part.position for part in images]),
            grid=torch.cat([part.grid for part in images]),
            offsets=end_to_end([part.offsets for part in images]),
            max_length=max(part.max_length for part in images),
            max_side=max(part.max_side for part in images),
        ),
        captions=Captions(
            ids=torch.cat([part.ids for part in captions]),
            offsets=end_to_end([part.offsets for part in captions]),
            max_length=max(part.max_length for part in captions),
            identity=torch.cat([part.identity for part in captions]),
        ),
        keys=sum((batch.keys for batch in batches), ()),
    )


def accumulate(engine: Engine, parts: list[Batch], world: World) -> Contrast:
    """A step's gradient; a rank's parts are shared out among its batches."""
    size = len(parts) // engine.config.accumulation
    batches = [joined(parts[start : start + size]) for start in range(0, len(parts), size)]
    counts = world.counts(sum(map(len, batches)))
    return accumulate_gradient(engine, batches, counts, LossConfig(), world)


def take_step(engine: Engine, parts: list[Batch], world: World) -> float:
    """This rank's part of a step's loss, scaled so that ranks average to the whole step's."""
    contrast = accumulate(engine, parts, world)
    assert engine.step(LEARNING_RATE)
    return contrast.loss.item()
