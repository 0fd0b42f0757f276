"""Samples -> packs of patches, made in worker processes; each rank gets its share of the packs.

Pack p holds the samples p * images_per_pack to (p + 1) * images_per_pack and goes to rank p mod ranks,
so what is in a pack depends on neither the number of ranks nor the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from navit_clip.batch import PackedImages, Patches, Sample
from navit_clip.data.patches import image_patches
from navit_clip.distributed import World
from navit_clip.errors import NavitClipError, SampleError


@runtime_checkable
class Samples(Protocol):
    """Samples by number; picklable, since worker processes read from it."""

    keys: list[str]
    """The name of each sample within the data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """Reads one sample; a SampleError where that one cannot be used."""
        ...


@dataclass(frozen=True, slots=True)
class ImagePack:
    """The images of a pack, and what became of the samples that it was to hold."""

    images: PackedImages | None = None
    """None where no sample of the pack could be used, or where a rank has no pack left."""
    samples: tuple[tuple[int, Sample], ...] = ()
    """Number and sample of each image, in the pack's order; the encoded images are let go."""
    faults: tuple[tuple[int, str, SampleError], ...] = ()
    """Number, key and error of each sample that could not be used."""


class ImagePacks(Dataset[ImagePack | NavitClipError]):
    """One rank's packs."""

    def __init__(
        self, samples: Samples, patch_size: int, tokens_per_image: int, images_per_pack: int, world: World
    ):
        self.images_per_round = images_per_pack * world.size
        self._samples = samples
        self._patch_size = patch_size
        self._tokens_per_image = tokens_per_image
        starts = range(0, len(samples), images_per_pack)
        self._packs = [range(start, min(start + images_per_pack, len(samples))) for start in starts]
        self._own = self._packs[world.rank :: world.size]
        self._num_rounds = -(-len(self._packs) // world.size)

    def __len__(self) -> int:
        return len(self._own)

    def __getitem__(self, number: int) -> ImagePack | NavitClipError:
        """A pack; or the error that ends all, whose message DataLoader would wrap in a traceback."""
        try:
            return self._pack(number)
        except NavitClipError as error:
            return error

    def rounds(self, num_workers: int) -> Iterator[ImagePack]:
        """This rank's packs in order, then empty ones: as many in all on every rank.

        Raises:
            DataError: a sample contradicts what is known of the whole data set.
        """
        # A generator of its own: a DataLoader without one draws a seed from the global state.
        workers = min(num_workers, len(self))
        for pack in DataLoader(self, batch_size=None, num_workers=workers, generator=torch.Generator()):
            if isinstance(pack, NavitClipError):
                raise pack
            yield pack
        yield from [ImagePack()] * (self._num_rounds - len(self))

    def placeholder(self) -> PackedImages:
        """One black patch, to pass through a tower whose weights other ranks wait for."""
        pixels = np.zeros((1, 3 * self._patch_size**2), dtype=np.uint8)
        return PackedImages.pack([Patches(pixels, np.zeros((1, 2), dtype=np.int32), (1, 1))])

    def _pack(self, number: int) -> ImagePack:
        images, samples, faults = [], [], []
        for index in self._own[number]:
            try:
                sample = self._samples[index]
                images.append(image_patches(sample.image, self._patch_size, self._tokens_per_image))
            except SampleError as error:
                faults.append((index, self._samples.keys[index], error))
            else:
                samples.append((index, replace(sample, image=b"")))
        return ImagePack(PackedImages.pack(images) if images else None, tuple(samples), tuple(faults))
