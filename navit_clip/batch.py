"""The carriers: what flows from shards to towers to loss, each a frozen dataclass.

    Sample -> Patches -> PackedImages + Captions = Batch -> Embeddings

Axis words, used in every shape of the project:

    tokens      the patches (or caption tokens) of all images (or captions) of a pack, one after the other
    images      images in a pack
    captions    captions in a pack
    pairs       images with their captions; where a pack holds pairs, image i goes with caption i
    patch_dim   values in one patch: patch_size * patch_size * 3, in (row, column, channel) order
    dim         width of a tower, or of an embedding

A pack has no padding: sequence i occupies tokens offsets[i] to offsets[i + 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor

Carrier = TypeVar("Carrier", bound=Any)
Empty = Callable[..., Tensor]
"""Makes a tensor of a shape and a dtype to be filled, as `torch.empty` does."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One member group of a shard, still encoded."""

    key: str
    """Names the sample within the whole data set: shard name and sample name. Seeds its random draws."""
    image: bytes
    captions: tuple[str, ...] = ()
    chances: tuple[float, ...] = ()
    """Of each caption to be drawn; none where all are alike."""
    label: int | None = None


@runtime_checkable
class PackableImage(Protocol):
    """One image, which is cut, or is cut when it is packed."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns before any patch was dropped."""
        ...

    @property
    def position(self) -> Int32[np.ndarray, "tokens 2"]:
        """Row and column of each kept patch in the full grid."""
        ...

    @property
    def patch_dim(self) -> int: ...

    def __len__(self) -> int:
        """The number of patches that are kept."""
        ...

    def write(self, pixels: UInt8[np.ndarray, "tokens patch_dim"]) -> None:
        """Writes the patches that are kept."""
        ...


@dataclass(frozen=True, slots=True)
class Patches:
    """One image, resized and cut; only the patches that were kept."""

    pixels: UInt8[np.ndarray, "tokens patch_dim"]
    position: Int32[np.ndarray, "tokens 2"]
    """Row and column of each kept patch in the full grid."""
    grid: tuple[int, int]
    """Rows and columns before any patch was dropped."""

    @property
    def patch_dim(self) -> int:
        return self.pixels.shape[1]

    def __len__(self) -> int:
        return len(self.pixels)

    def write(self, pixels: UInt8[np.ndarray, "tokens patch_dim"]) -> None:
        """Copies them."""
        pixels[:] = self.pixels


@dataclass(frozen=True, slots=True)
class PackedImages:
    """Images of any size, one after the other.

    Pixels stay bytes until the tower normalises them on its own device: a quarter of the traffic
    between workers, host and GPU that floats would cost.
    """

    patches: UInt8[Tensor, "tokens patch_dim"]
    position: Int32[Tensor, "tokens 2"]
    """Row and column of each patch in its image's full grid."""
    grid: Int32[Tensor, "images 2"]
    """Rows and columns of each image before any patch was dropped; fractional positions need it."""
    offsets: Int32[Tensor, " images_plus_one"]
    """Where each image starts, then the total: flash-attn's cu_seqlens."""
    max_length: int
    """Tokens of the longest image, on the host, for kernels that want it without a sync."""
    max_side: int
    """Largest row or column count of any grid, on the host, for tables that must refuse a longer one."""

    @classmethod
    def pack(cls, images: Sequence[PackableImage], empty: Empty = torch.empty) -> PackedImages:
        """Writes images in the order given, at least one, into memory that `empty` gives."""
        lengths = [len(image) for image in images]
        offsets = offsets_of(lengths)
        patches = empty((sum(lengths), images[0].patch_dim), dtype=torch.uint8)
        position = empty((sum(lengths), 2), dtype=torch.int32)
        np.concatenate([image.position for image in images], out=position.numpy())
        pixels = patches.numpy()
        for image, (start, end) in zip(images, pairwise(offsets.tolist()), strict=True):
            image.write(pixels[start:end])
        return cls(
            patches=patches,
            position=position,
            grid=_placed(torch.tensor([image.grid for image in images], dtype=torch.int32), empty),
            offsets=_placed(offsets, empty),
            max_length=max(lengths),
            max_side=max(max(image.grid) for image in images),
        )

    def __len__(self) -> int:
        return len(self.grid)

    @property
    def num_tokens(self) -> int:
        return len(self.patches)

    def to(self, device: torch.device | str) -> PackedImages:
        return _to_device(self, device)


@dataclass(frozen=True, slots=True)
class Captions:
    """Captions of any length, one after the other: a batch pays for the tokens that it has."""

    ids: Int32[Tensor, " tokens"]
    offsets: Int32[Tensor, " captions_plus_one"]
    max_length: int
    identity: Int64[Tensor, " captions"]
    """A hash of what the caption says (`caption_identity`): equal captions are equal numbers."""

    @classmethod
    def pack(
        cls, ids: Sequence[Sequence[int]], identity: Sequence[int], empty: Empty = torch.empty
    ) -> Captions:
        """Concatenates token sequences in the order given, at least one, each of at least one token."""
        lengths = [len(caption) for caption in ids]
        tokens = [token for caption in ids for token in caption]
        return cls(
            ids=_placed(torch.tensor(tokens, dtype=torch.int32), empty),
            offsets=_placed(offsets_of(lengths), empty),
            max_length=max(lengths),
            identity=_placed(torch.tensor(identity, dtype=torch.int64), empty),
        )

    def __len__(self) -> int:
        return len(self.identity)

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Captions:
        return _to_device(self, device)


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's micro-step: a budget of image tokens, so the number of pairs varies."""

    images: PackedImages
    captions: Captions
    keys: tuple[str, ...]
    longest_wait: int = 0
    """Batches that the one of its images that waited longest let go by."""

    def __post_init__(self):
        assert len(self.images) == len(self.captions) == len(self.keys)

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        return _to_device(self, device)


class Embeddings(NamedTuple):
    """What a model makes of a batch: logits = logit_scale * image @ text.T + logit_bias.

    A tuple, so that DeepSpeed's hooks find the tensors in it.
    """

    image: Float[Tensor, "pairs dim"]
    """Unit vectors in fp32; image i goes with caption i."""
    text: Float[Tensor, "pairs dim"]
    identity: Int64[Tensor, " pairs"]
    """`Captions.identity`, for losses that count equal captions as positives."""
    logit_scale: Float[Tensor, "1"]
    """t = exp(t')."""
    logit_bias: Float[Tensor, "1"]


def offsets_of(lengths: Sequence[int]) -> Int32[Tensor, " sequences_plus_one"]:
    """Start of each sequence in a pack, then the total."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def lengths_of(offsets: Int32[Tensor, " sequences_plus_one"]) -> list[int]:
    """Length of each sequence in a pack, on the host; a device sync if the offsets are elsewhere."""
    return [end - start for start, end in pairwise(offsets.tolist())]


def caption_identity(text: str) -> int:
    """A 63-bit hash of a caption, so that ranks can tell equal captions without exchanging text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def map_tensors(carrier: Carrier, function: Callable[[Tensor], Tensor]) -> Carrier:
    """The same with another tensor for each of its own, which are taken in the order of the fields."""
    changed = {}
    for field in fields(carrier):
        value = getattr(carrier, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif is_dataclass(value):
            changed[field.name] = map_tensors(value, function)
    return replace(carrier, **changed)


def _to_device(carrier: Carrier, device: torch.device | str) -> Carrier:
    """The same with its tensors on a device; copies from pinned memory overlap with compute."""
    return map_tensors(carrier, lambda tensor: tensor.to(device, non_blocking=True))


def _placed(tensor: Tensor, empty: Empty) -> Tensor:
    return empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
