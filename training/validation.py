"""The loss on held-out pairs, comparable between runs whatever their ranks, budgets and packing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from navit_clip.batch import Batch, Embeddings, caption_identity
from navit_clip.data import ValidationDataConfig
from navit_clip.distributed import World
from navit_clip.errors import ConfigError, DataError
from navit_clip.loss import LossConfig, contrastive_loss
from navit_clip.model import TwoTowers


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What the validation loss is taken over."""

    data: ValidationDataConfig = field(default_factory=ValidationDataConfig)
    """Held-out pairs; without shards there is no validation."""
    group: int = 256
    """Pairs contrasted with each other. The loss grows with it, so only losses of one group size compare."""

    def __post_init__(self):
        if self.group < 2:
            raise ConfigError(f"group: expected at least 2 pairs to contrast, found {self.group}")


@torch.no_grad()  # not inference mode: what attention keeps of a pack would be unfit for training
def validation_loss(
    config: ValidationConfig, loss: LossConfig, model: TwoTowers, batches: Iterable[Batch], world: World
) -> float:
    """Mean sigmoid loss over groups of `config.group` held-out pairs, the same on every rank.

    Every rank embeds its own batches, any number of them. All pairs are then put in the order of a hash of
    their keys and cut into groups, so that a group mixes the data set and is always the same pairs. A last
    group that is not full is left out, unless it is the only one.

    Args:
        config: the group size.
        loss: which comparisons are positives.
        model: whole, on every rank.
        batches: this rank's share of the held-out pairs.
        world: the ranks; all call this together.

    Raises:
        DataError: there is no pair on any rank.
    """
    was_training = model.training
    model.eval()
    image, text, identity, order = _embed(model, batches, world.device)
    model.train(was_training)

    counts = world.counts(len(order))
    if not sum(counts):
        raise DataError("validation.data: no usable pair in any of its shards")
    ranked = world.gather_rows(order, counts).argsort()
    image, text, identity = (world.gather_rows(part, counts)[ranked] for part in (image, text, identity))

    alone = World(rank=0, size=1, device=world.device)
    size = min(config.group, len(ranked))
    losses = []
    for start in range(0, len(ranked) - size + 1, size):
        group = slice(start, start + size)
        embeddings = Embeddings(
            image[group], text[group], identity[group], model.logit_scale.exp(), model.logit_bias
        )
        losses.append(contrastive_loss(loss, embeddings, [size], alone))
    return torch.stack(losses).mean().item()


def _embed(model: TwoTowers, batches: Iterable[Batch], device: torch.device) -> list[torch.Tensor]:
    """Image and text vectors, caption identities and key hashes of all batches."""
    vectors = torch.empty(0, model.embedding_dim, device=device)
    numbers = torch.empty(0, dtype=torch.int64, device=device)
    parts = [[vectors], [vectors], [numbers], [numbers]]  # a rank may have no batch at all
    for batch in batches:
        embeddings = model(batch.to(device))
        hashes = torch.tensor([caption_identity(key) for key in batch.keys], device=device)
        for part, value in zip(parts, (*embeddings[:3], hashes), strict=True):
            part.append(value)
    return [torch.cat(part) for part in parts]
