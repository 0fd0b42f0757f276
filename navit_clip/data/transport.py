"""Batches from pinned memory to a device, beside its work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from navit_clip.batch import Batch


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
        for tensor in _tensors(moved):
            tensor.record_stream(current)  # its memory is not reused before this stream is done with it
        return moved


def _tensors(carrier: Any) -> Iterator[Tensor]:
    for field in fields(carrier):
        value = getattr(carrier, field.name)
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from _tensors(value)
