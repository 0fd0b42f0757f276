"""Tensors to another rank, and others from one, at once and meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


class Exchange:
    """What is to come and go, then started, then waited for. What has no rows is neither sent nor awaited."""

    def __init__(self):
        self._operations: list[dist.P2POp] = []
        self._requests: list[dist.Work] = []

    def pass_on(self, tensors: Sequence[Tensor], to: int, source: int, num_rows: int) -> list[Tensor]:
        """Plans to send tensors to a rank; returns where as many will arrive from another.

        Args:
            tensors: contiguous; alike, but for their rows, on all ranks.
            to: a rank.
            source: another, or the same.
            num_rows: of what comes.
        """
        arriving = [tensor.new_empty(num_rows, *tensor.shape[1:]) for tensor in tensors]
        for tensor, space in zip(tensors, arriving, strict=True):
            if len(tensor):
                self._operations.append(dist.P2POp(dist.isend, tensor, to))
            if num_rows:
                self._operations.append(dist.P2POp(dist.irecv, space, source))
        return arriving

    def start(self) -> None:
        """All of it; what is sent must stay as it is until it was waited for."""
        if self._operations:
            self._requests = dist.batch_isend_irecv(self._operations)

    def wait(self) -> None:
        """Until all has come."""
        for request in self._requests:
            request.wait()
        self._operations.clear()  # what was sent may go
