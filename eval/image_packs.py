"""Samples -> packs of images, made in worker processes; each rank gets its share of the packs.

Pack p holds the samples p * images_per_pack to (p + 1) * images_per_pack and goes to rank p mod ranks,
so what is in a pack depends on neither the number of ranks nor the number of workers.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from eval.model import Preparation
from eval.views import View
from navit_clip.batch import Sample
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

    def fingerprint(self) -> str:
        """A text that is another where a sample's bytes, key, label or captions may be others."""
        ...


@dataclass(frozen=True, slots=True)
class ImagePack:
    """The images of a pack, and what became of the samples that it was to hold."""

    number: int
    images: Any
    """What the model takes; None where no sample of the pack could be used."""
    num_tokens: int
    samples: tuple[tuple[int, Sample], ...]
    """Number and sample of each image, in the pack's order; the encoded images are let go."""
    faults: tuple[tuple[int, str, SampleError], ...]
    """Number, key and error of each sample that could not be used."""


class ImagePacks(Dataset[ImagePack | NavitClipError]):
    """Some packs of a data set.

    Args:
        samples: the data set.
        preparation: how the model takes images.
        view: what of each picture it is shown.
        images_per_pack: samples of each pack.
        numbers: which packs.
    """

    def __init__(
        self,
        samples: Samples,
        preparation: Preparation,
        view: View,
        images_per_pack: int,
        numbers: Sequence[int],
    ):
        self._samples = samples
        self._preparation = preparation
        self._view = view
        self._images_per_pack = images_per_pack
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> ImagePack | NavitClipError:
        """A pack; or the error that ends all, whose message DataLoader would wrap in a traceback."""
        try:
            return self._pack(self._numbers[index])
        except NavitClipError as error:
            return error

    def made(self, num_workers: int) -> Generator[ImagePack, None, None]:
        """The packs in order.

        Raises:
            DataError: a sample contradicts what is known of the whole data set.
        """
        # A generator of its own: a DataLoader without one draws a seed from the global state.
        workers = min(num_workers, len(self))
        for pack in DataLoader(self, batch_size=None, num_workers=workers, generator=torch.Generator()):
            if isinstance(pack, NavitClipError):
                raise pack
            yield pack

    def _pack(self, number: int) -> ImagePack:
        images, samples, faults, num_tokens = [], [], [], 0
        first = number * self._images_per_pack
        for index in range(first, min(first + self._images_per_pack, len(self._samples))):
            key = self._samples.keys[index]
            try:
                sample = self._samples[index]
                image, tokens = self._preparation.prepare(self._view.open(sample.image), key)
            except SampleError as error:
                faults.append((index, key, error))
            else:
                images.append(image)
                samples.append((index, replace(sample, image=b"")))
                num_tokens += tokens
        packed = self._preparation.pack(images) if images else None
        return ImagePack(number, packed, num_tokens, tuple(samples), tuple(faults))
