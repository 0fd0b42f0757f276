"""The sigmoid contrastive loss of SigLIP (2303.15343, Algorithm 1), exact for uneven ranks.

Every image is compared with every caption of every rank, each comparison a yes-or-no question of its own:

    logits = exp(t') * image @ text.T + b
    loss   = - sum over all (image, caption) of log sigmoid(z * logits) / pairs

with z = +1 where they belong together and -1 elsewhere, and pairs counted over all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from navit_clip.batch import Embeddings
from navit_clip.distributed import World


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which image and caption belong together."""

    positives: Literal["pair", "same_caption"] = "pair"
    """pair: an image and its own caption. same_caption: also every equal caption, for data whose captions
    repeat inside a batch, such as class names."""


def sigmoid_loss(
    config: LossConfig, embeddings: Embeddings, counts: list[int], world: World
) -> Float[Tensor, ""]:
    """This rank's part of the loss, scaled so that the *mean* over ranks is the loss of all pairs.

    Data-parallel engines average gradients over ranks, so the sum over this rank's images against all
    captions is multiplied by ranks / pairs: exact for any counts, a rank without pairs included.

    Args:
        config: which comparisons are positives.
        embeddings: unit vectors of this rank's pairs, with scale and bias of the logits.
        counts: pairs of every rank, from `World.counts`.
        world: the ranks; captions travel, images stay.
    """
    text = world.gather_rows(embeddings.text, counts)
    first = sum(counts[: world.rank])
    if config.positives == "pair":
        positive = _own_pairs(counts[world.rank], first, len(text), text.device)
    else:
        positive = _equal_captions(embeddings.identity, world.gather_rows(embeddings.identity, counts))
    logits = embeddings.logit_scale * embeddings.image @ text.T + embeddings.logit_bias
    signs = torch.where(positive, 1.0, -1.0)
    return -F.logsigmoid(signs * logits).sum() * (world.size / sum(counts))


def _own_pairs(rows: int, first: int, columns: int, device: torch.device) -> Bool[Tensor, "rows columns"]:
    row = torch.arange(rows, device=device) + first
    return row[:, None] == torch.arange(columns, device=device)


def _equal_captions(
    own: Int64[Tensor, " rows"], everyone: Int64[Tensor, " columns"]
) -> Bool[Tensor, "rows columns"]:
    return own[:, None] == everyone
