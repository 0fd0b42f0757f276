"""A rank's share of each weight: an equal part of its values under ZeRO 3, all of it below."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from navit_clip.distributed import World
from training.quiet_deepspeed import deepspeed


class Shares:
    """Cuts tensors of the weights' shapes as DeepSpeed cuts weights, and joins them.

    Args:
        stage: of ZeRO.
        world: the ranks.
    """

    def __init__(self, stage: int, world: World):
        self._cut = stage == 3
        self._world = world

    def weights(self, parameters: Iterable[Any]) -> list[Tensor]:
        """This rank's share of each weight, itself rather than a copy."""
        return [parameter.ds_tensor if self._cut else parameter for parameter in parameters]

    def whole(self, parameter: Any) -> Tensor:
        """All of a weight, on every rank; all ranks call it together."""
        if not self._cut:
            return parameter.detach()
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def cut(self, whole: Tensor, parameter: Any) -> Tensor:
        """This rank's share of a tensor of a weight's shape."""
        if not self._cut:
            return whole
        size = parameter.ds_tensor.numel()
        padded = whole.new_zeros(size * self._world.size)
        padded[: whole.numel()] = whole.flatten()
        return padded[size * self._world.rank : size * (self._world.rank + 1)]

    def joined(self, share: Tensor, parameter: Any) -> Tensor:
        """The opposite of `cut`; all ranks call it together."""
        if not self._cut:
            return share
        flat = self._world.gather_rows(share.flatten(), [share.numel()] * self._world.size)
        return flat[: parameter.ds_numel].view(parameter.ds_shape)
