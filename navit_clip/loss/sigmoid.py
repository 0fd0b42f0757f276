"""SigLIP's sigmoid loss (2303.15343, Algorithm 1), streamed: the loss and all gradients in one pass.

Every image is compared with every caption of every rank, each comparison a yes-or-no question of its own:

    logits = exp(t') * image @ text.T + b
    loss   = - sum over all (image, caption) of log sigmoid(z * logits) / pairs

with z = +1 where they belong together and -1 elsewhere, and pairs counted over all ranks. A comparison's
gradient, -z * sigmoid(-z * logit), is known once its logit is, so a tile is done with when it was looked at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from navit_clip.loss.comparisons import Accumulator, Comparisons, Sums
from navit_clip.loss.ring import travel


def sigmoid_sums(comparisons: Comparisons) -> Sums:
    """Loss and gradients, not yet divided by the number of pairs."""
    total = Accumulator(comparisons)

    def visit(first: int, arrived: list[Tensor]) -> list[Tensor]:
        columns, *identity = arrived
        made = torch.zeros_like(columns) if comparisons.wants_columns else None
        for tile in comparisons.tiles(first, columns, *identity):
            scaled = comparisons.rows[tile.rows] * comparisons.logit_scale
            doubt = torch.addmm(comparisons.logit_bias, scaled, columns[tile.columns].T)  # -z * logits
            signs = None if tile.positive is None else torch.where(tile.positive, -1.0, 1.0)
            if signs is not None:
                doubt *= signs
            total.loss += F.softplus(doubt).sum()
            if comparisons.wants_gradient:
                gradient = doubt.sigmoid_()
                if signs is not None:
                    gradient *= signs
                total.add(tile, columns, gradient, made)
        return [] if made is None else [made]

    home = travel(comparisons.travelling, comparisons.counts, comparisons.world, visit)
    return total.sums(home[0] if home else None)
