"""The softmax loss of CLIP (2103.00020), which SigLIP was compared with, streamed by log-sum-exp.

    loss = mean over images i of   - log softmax over captions of logits[i], at the image's own
         + mean over captions j of - log softmax over images of logits[:, j], at the caption's own, over two

Two passes: the first gives every image's and caption's log-sum-exp, the second, which needs them, the
gradients. Where several captions of an image are positives, the target is shared evenly among them. The
bias moves all logits alike, which a softmax does not see: it is left out, and its gradient is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from navit_clip.loss.comparisons import Accumulator, Comparisons, Sums, Tile
from navit_clip.loss.ring import travel


def softmax_sums(comparisons: Comparisons) -> Sums:
    """Loss and gradients, not yet divided by the number of pairs."""
    counts, world = comparisons.counts, comparisons.world
    log_rows = torch.full_like(comparisons.rows[:, 0], -torch.inf)

    def normalise(first: int, arrived: list[Tensor]) -> list[Tensor]:
        columns, *identity = arrived
        log_columns = torch.full_like(columns[:, 0], -torch.inf)
        for tile in comparisons.tiles(first, columns, *identity):
            logits = _logits(comparisons, tile, columns)
            log_rows[tile.rows] = log_rows[tile.rows].logaddexp(logits.logsumexp(1))
            log_columns[tile.columns] = log_columns[tile.columns].logaddexp(logits.logsumexp(0))
        return [log_columns]

    (log_columns,) = travel(comparisons.travelling, counts, world, normalise, torch.logaddexp)

    total = Accumulator(comparisons)
    total.loss += ((log_rows + log_columns) / 2).sum()
    share = _share_of_a_positive(comparisons)

    def differentiate(first: int, arrived: list[Tensor]) -> list[Tensor]:
        columns, *identity, log_columns = arrived
        made = torch.zeros_like(columns) if comparisons.wants_columns else None
        for tile in comparisons.tiles(first, columns, *identity):
            logits = _logits(comparisons, tile, columns)
            target = None if tile.positive is None else tile.positive * share[tile.rows, None]
            if target is not None:
                total.loss -= (target * logits).sum()
            if comparisons.wants_gradient:
                gradient = (logits - log_rows[tile.rows, None]).exp_()
                gradient += (logits - log_columns[tile.columns]).exp_()
                gradient /= 2
                if target is not None:
                    gradient -= target
                total.add(tile, columns, gradient, made)
        return [] if made is None else [made]

    home = travel([*comparisons.travelling, log_columns], counts, world, differentiate)
    sums = total.sums(home[0] if home else None)
    return sums._replace(logit_bias=torch.zeros_like(sums.logit_bias))


def _logits(comparisons: Comparisons, tile: Tile, columns: Tensor) -> Tensor:
    return (comparisons.rows[tile.rows] * comparisons.logit_scale) @ columns[tile.columns].T


def _share_of_a_positive(comparisons: Comparisons) -> Tensor:
    """For each row, one over the number of its positives among all ranks."""
    like = comparisons.rows[:, 0]
    if not comparisons.same_caption:
        return torch.ones_like(like)
    everyone = comparisons.world.gather_rows(comparisons.identity, comparisons.counts)
    values, numbers = everyone.unique(return_counts=True)
    return 1 / numbers[torch.searchsorted(values, comparisons.identity)].to(like.dtype)
