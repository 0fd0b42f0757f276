"""A batch's way to a device: one block of memory, shared by the worker that fills it, and copied beside work.

A worker packs a batch straight into memory that it shares with the training process; what goes through the
queue is the block's handle and the form of what lies in it. So pixels are copied once on the way to the
training process, and that process does the same few things for a batch, however many images are in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from navit_clip.batch import Batch, map_tensors

_ALIGNMENT = 8
"""In bytes: of the largest type in a batch."""
_MOST_TENSORS = 16


class Block:
    """Memory that tensors are made in, side by side.

    Args:
        memory: all of it.
    """

    def __init__(self, memory: UInt8[Tensor, " bytes"]):
        self.memory = memory
        self._taken = 0

    @classmethod
    def for_tensors(cls, num_bytes: int) -> Block:
        """Room for a batch's tensors of so many bytes in all; in a worker process, shared with its parent."""
        size = num_bytes + _MOST_TENSORS * _ALIGNMENT
        if get_worker_info() is None:
            return cls(torch.empty(size, dtype=torch.uint8))
        # As DataLoader's own collation does: no other way to shared memory is without a copy.
        return cls(_bytes_of(torch.UntypedStorage._new_shared(size)))

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next tensor, as `torch.empty` makes one."""
        start = -(-self._taken // _ALIGNMENT) * _ALIGNMENT
        self._taken = start + math.prod(shape) * dtype.itemsize
        return self.memory[start : self._taken].view(dtype).view(*shape)


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch that is handed from process to process."""

    memory: UInt8[Tensor, " bytes"]
    form: Batch
    """Without data (device "meta"): what the memory holds, in this order."""

    @classmethod
    def of(cls, batch: Batch) -> Parcel:
        """A batch whose tensors were made in one block, in the order of its fields."""
        return cls(_bytes_of(batch.images.patches.untyped_storage()), batch.to("meta"))

    def open(self) -> Batch:
        """The batch, in this memory."""
        block = Block(self.memory)
        return map_tensors(self.form, lambda tensor: block.empty(tensor.shape, dtype=tensor.dtype))

    def pin_memory(self) -> Parcel:
        """The same in memory that a GPU copies from while the host goes on."""
        return Parcel(self.memory.pin_memory(), self.form)


class Transfer:
    """Copies batches to a device; on a GPU on a stream of its own.

    The host runs ahead of a GPU, so a batch is copied while the step before it still computes; the stream
    that uses the batch waits for the copy, the host does not. No batch is taken from the loader before its
    turn, so the loader's state says what was trained on.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)

        def in_use(tensor: Tensor) -> Tensor:
            tensor.record_stream(current)  # its memory is not reused before this stream is done with it
            return tensor

        return map_tensors(moved, in_use)


def _bytes_of(storage: torch.UntypedStorage) -> UInt8[Tensor, " bytes"]:
    return torch.empty(0, dtype=torch.uint8).set_(storage)
