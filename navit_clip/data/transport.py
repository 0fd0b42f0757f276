"""A batch's way to a device: one block of memory, shared by the worker that fills it, and copied beside work.

A worker packs a batch straight into memory that it shares with the training process; what goes through the
queue is the block's number and where in it the tensors lie. So pixels are copied once on the way to the
training process, and that process does the same few things for a batch, however many images are in it.

Blocks are used again. A new one costs both processes more than all else that is done for a batch: its handle
goes through a socket, and each of its pages has to be made and cleared. So the handle is sent once, and a
block is free again as soon as nothing of its batch is left in the training process.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from navit_clip.batch import Batch, map_tensors

_ALIGNMENT = 8
"""In bytes: of the largest type in a batch."""
_MOST_TENSORS = 16
_ROOM = 1.25
"""Share of the batch's bytes that its block has, so that later ones fit, too. Memory that is never written to
is none."""
_MOST_BLOCKS = 16
"""Of a worker, that are used again; others are made and let go."""
_FREE, _TAKEN = 0, 1
"""The last byte of a block that is shared."""


class Block:
    """Memory that tensors are made in, side by side.

    Args:
        memory: all of it.

    Raises:
        ValueError: a tensor is asked for that no longer fits.
    """

    def __init__(self, memory: UInt8[Tensor, " bytes"]):
        self.memory = memory
        self._taken = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next tensor, as `torch.empty` makes one."""
        start = -(-self._taken // _ALIGNMENT) * _ALIGNMENT
        end = start + math.prod(shape) * dtype.itemsize
        if end > len(self.memory):
            raise ValueError(f"a block of {len(self.memory)} bytes has no room up to byte {end}")
        self._taken = end
        return self.memory[start:end].view(dtype).view(*shape)


NewBlock = Callable[[int], Block]
"""Gives room for a batch's tensors of so many bytes in all."""


def private_block(num_bytes: int) -> Block:
    """A block of this process alone."""
    return Block(torch.empty(num_bytes + _MOST_TENSORS * _ALIGNMENT, dtype=torch.uint8))


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch that is handed from process to process."""

    memory: UInt8[Tensor, " bytes"]
    """Of a block, what the batch has."""
    form: bytes
    """The batch but for its data: where in the memory each tensor lies."""

    @classmethod
    def of(cls, batch: Batch) -> Parcel:
        """A batch whose tensors were all made in one block.

        Raises:
            ValueError: one of them was not, or is no whole run of its block's bytes.
        """
        memory = _bytes_of(batch.images.patches.untyped_storage())
        written = io.BytesIO()
        form = _Form(written, memory)
        form.dump(batch)
        return cls(memory[: form.end], written.getvalue())

    def open(self) -> Batch:
        """The batch, in this memory."""
        return _Opened(self.form, self.memory).load()

    def pin_memory(self) -> Parcel:
        """The same in memory that a GPU copies from while the host goes on."""
        return Parcel(self.memory.pin_memory(), self.form)


@dataclass(frozen=True, slots=True)
class SentParcel(Parcel):
    """A parcel in a block that is used again; out of the queue comes a `Parcel`."""

    address: tuple[int, int, int]
    """The number of the training process's `ReceivedBlocks`, that of the worker, and that of the block."""
    new_block: UInt8[Tensor, " room"] | None
    """All of the block, if the training process is yet to get its handle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self.address, self.new_block, len(self.memory), self.form)


class SharedBlocks:
    """A worker process's blocks, each taken until its batch is gone from the training process.

    Args:
        received: the number of the training process's `ReceivedBlocks`.
        worker: the worker's number.
    """

    def __init__(self, received: int, worker: int):
        self._owner = (received, worker)
        self._blocks: list[_SharedBlock] = []
        self._unsent: _SharedBlock | None = None

    def new(self, num_bytes: int) -> Block:
        """A block that is free and large enough, or another; the one before it is free if it was not sent."""
        if self._unsent is not None:
            self._unsent.flag[0] = _FREE
        self._unsent = self._free_block(num_bytes + _MOST_TENSORS * _ALIGNMENT + 1)
        return self._unsent.take()

    def _free_block(self, size: int) -> _SharedBlock:
        free = [number for number, block in enumerate(self._blocks) if block.flag[0] == _FREE]
        for number in free:
            if len(self._blocks[number].memory) >= size:
                return self._blocks[number]
        # As DataLoader's own collation does: no other way to shared memory is without a copy.
        block = _SharedBlock(_bytes_of(torch.UntypedStorage._new_shared(int(_ROOM * size))))
        if free:
            self._blocks[free[0]] = block
        elif len(self._blocks) < _MOST_BLOCKS:
            self._blocks.append(block)
        return block

    def send(self, parcel: Parcel) -> Parcel:
        """A parcel in one of these blocks, as it goes through a queue."""
        address = parcel.memory.data_ptr()
        self._unsent = None
        for number, block in enumerate(self._blocks):
            if block.memory.data_ptr() == address:
                new_block = None if block.is_sent else block.memory
                block.is_sent = True
                return SentParcel(parcel.memory, parcel.form, (*self._owner, number), new_block)
        return parcel


class _SharedBlock:
    def __init__(self, memory: UInt8[Tensor, " bytes"]):
        self.memory = memory
        self.flag = memory[-1:].numpy()
        self.is_sent = False

    def take(self) -> Block:
        self.flag[0] = _TAKEN
        return Block(self.memory[:-1])


class ReceivedBlocks(dict[tuple[int, int, int], UInt8[Tensor, " bytes"]]):
    """In the training process, the blocks that a loader's workers have sent, by address.

    They are found by a number, since a parcel is unpacked by whichever thread takes it out of the queue.
    """

    _all: ClassVar[weakref.WeakValueDictionary[int, ReceivedBlocks]] = weakref.WeakValueDictionary()
    _numbers: ClassVar[Iterator[int]] = count()

    def __init__(self):
        super().__init__()
        self.number = next(self._numbers)
        self._all[self.number] = self

    @classmethod
    def of(cls, number: int) -> ReceivedBlocks:
        """Those of a number; a loader has them while it is iterated."""
        return cls._all[number]


def _receive(
    address: tuple[int, int, int], new_block: UInt8[Tensor, " room"] | None, num_bytes: int, form: bytes
) -> Parcel:
    blocks = ReceivedBlocks.of(address[0])
    if new_block is not None:
        blocks[address] = new_block
    block = _SharedBlock(blocks[address])
    # All that is made of the batch keeps this array: when it goes, the block is free.
    array = block.memory.numpy()
    weakref.finalize(array, _let_go, block.flag, os.getpid()).atexit = False
    return Parcel(torch.from_numpy(array)[:num_bytes], form)


def _let_go(flag: UInt8[np.ndarray, "1"], process: int) -> None:
    """A process that was forked meanwhile has the batch, too, but not the say about it."""
    if os.getpid() == process:
        flag[0] = _FREE


class _Form(pickle.Pickler):
    """Writes where in a memory a tensor lies in place of what is in it."""

    def __init__(self, file: io.BytesIO, memory: UInt8[Tensor, " bytes"]):
        super().__init__(file)
        self._address = memory.data_ptr()
        self.end = 0
        """Where the last of the tensors ends."""

    def persistent_id(self, obj: Any) -> tuple[int, int, tuple[int, ...], torch.dtype] | None:
        if not isinstance(obj, Tensor):
            return None
        if obj.untyped_storage().data_ptr() != self._address or not obj.is_contiguous():
            raise ValueError(f"a tensor {list(obj.shape)} of a batch was not made in the batch's block")
        start = int(obj.storage_offset()) * obj.itemsize
        end = start + int(obj.nbytes)
        self.end = max(self.end, end)
        return start, end, tuple(obj.shape), obj.dtype


class _Opened(pickle.Unpickler):
    """Finds the tensors in another memory."""

    def __init__(self, form: bytes, memory: UInt8[Tensor, " bytes"]):
        super().__init__(io.BytesIO(form))
        self._memory = memory

    def persistent_load(self, pid: tuple[int, int, tuple[int, ...], torch.dtype]) -> Tensor:
        start, end, shape, dtype = pid
        return self._memory[start:end].view(dtype).view(shape)


class Transfer:
    """Copies batches to a device; on a GPU on a stream of its own, beside what the device computes.

    The stream that uses a batch waits for its copy, the host does not.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, batch: Batch) -> Batch:
        """The batch on the device, where it is yet to arrive."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            return batch.to(self._device)

    def arrived(self, moving: Batch) -> Batch:
        """The same for the stream that now computes, once all copies that were started have come there."""
        if self._stream is None:
            return moving
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)

        def in_use(tensor: Tensor) -> Tensor:
            tensor.record_stream(current)  # its memory is not reused before this stream is done with it
            return tensor

        return map_tensors(moving, in_use)


def _bytes_of(storage: torch.UntypedStorage) -> UInt8[Tensor, " bytes"]:
    return torch.empty(0, dtype=torch.uint8).set_(storage)
