"""A moving average of the weights: what a run evaluates, saves as its model and exports, if asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class MovingAverage:
    """average = decay * average + (1 - decay) * weights, after every step.

    Args:
        weights: what is averaged, a rank's share of each weight where weights are sharded; the average starts
            as they are.
        decay: share of the average that stays at each step.
    """

    def __init__(self, weights: Sequence[Tensor], decay: float):
        self._decay = decay
        self.values = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor]) -> None:
        """Takes the weights after a step in; they are those of the start, in the same order."""
        for value, weight in zip(self.values, weights, strict=True):
            value.lerp_(weight.detach(), 1 - self._decay)
