"""An exported folder against the model that it came from, opened by the library that it was made for.

Images go through both preprocessings, ours and the folder's, as the same RGB pixels. Images whose grid is
one column wide are left out: timm and older transformers resize their position embeddings by torch, which
on a CPU repeats the first row there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from navit_clip.batch import Captions, PackedImages, caption_identity
from navit_clip.data.patches import cut_patches
from navit_clip.data.resize import grid_for
from navit_clip.errors import ExportError
from navit_clip.huggingface.siglip2 import TowerName
from navit_clip.model import ImageTowerConfig
from navit_clip.weights import LoadedModel

BOUND = 1e-5
"""Largest difference between two values of unit vectors."""


@dataclass(frozen=True, slots=True)
class Verification:
    """How far one model is from the other, at most; of a tower that was not compared, none were."""

    num_images: int
    image_difference: float
    num_captions: int
    caption_difference: float

    def lines(self, source: str) -> list[str]:
        """For people; `source` says where the images are from."""
        of_images = (
            f"{self.num_images} images {source}: unit vectors at most {self.image_difference:.1e} apart"
        )
        of_captions = (
            f"{self.num_captions} captions: equal token ids, unit vectors at most "
            f"{self.caption_difference:.1e} apart"
        )
        return [of_images] * bool(self.num_images) + [of_captions] * bool(self.num_captions)


@runtime_checkable
class OpenedFolder(Protocol):
    """An exported folder, as a user opens it."""

    def scalars(self) -> dict[str, float]:
        """logit_scale and logit_bias, where the folder has both."""
        ...

    def encode_images(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Iterator[Float[Tensor, "images dim"]]:
        """Vectors of the images, normalised or not, once for each way in which the folder takes them."""
        ...

    def token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """What its text tower attends to."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> Float[Tensor, "captions dim"]: ...


@torch.no_grad()
def compare(
    loaded: LoadedModel,
    opened: OpenedFolder,
    tower: TowerName,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    captions: Sequence[str],
    tokens_per_image: int,
) -> Verification:
    """Compares scalars, token ids and embeddings, on the CPU in float32.

    Raises:
        ExportError: they differ.
    """
    for name, theirs in opened.scalars().items():
        ours = getattr(loaded.model, name).item()
        if theirs != ours:
            raise ExportError(
                f"the exported model is not the trained one: its {name} is {theirs}, not {ours}"
            )
    image_difference = caption_difference = 0.0
    if tower == "text":
        images = []
    else:
        config = loaded.model.config.image
        images = [image for image in images if _comparable(image, config, tokens_per_image)]
        if not images:
            raise ExportError("there is no image to verify the export on; name some with --images")
        packed = PackedImages.pack(
            [cut_patches(image, config.patch_size, tokens_per_image) for image in images]
        )
        of_images = loaded.model.encode_images(packed)
        image_difference = max(
            _difference("image", of_images, theirs) for theirs in opened.encode_images(images)
        )
    if tower == "image":
        captions = []
    else:
        ids = _checked_ids(loaded, opened, captions)
        packed = Captions.pack(ids, [caption_identity(caption) for caption in captions])
        of_captions = loaded.model.encode_captions(packed)
        caption_difference = _difference("caption", of_captions, opened.encode_captions(captions))
    return Verification(len(images), image_difference, len(captions), caption_difference)


def _checked_ids(loaded: LoadedModel, opened: OpenedFolder, captions: Sequence[str]) -> list[list[int]]:
    """Our ids of the captions, which are the folder's."""
    ids = loaded.tokenizer.encode(captions, loaded.model.config.text.context_length)
    for caption, ours, theirs in zip(captions, ids, opened.token_ids(captions), strict=True):
        if theirs != ours:
            raise ExportError(f"the exported tokenizer reads {caption!r} as {theirs}, expected {ours}")
    return ids


def _difference(kind: str, ours: Float[Tensor, "vectors dim"], pooled: Float[Tensor, "vectors dim"]) -> float:
    differences = (F.normalize(pooled, dim=-1) - ours).abs().amax(dim=-1)
    worst = int(differences.argmax())
    if not bool((differences <= BOUND).all()):  # a NaN is not within the bound either
        raise ExportError(
            f"the exported model is not the trained one: the embedding of {kind} {worst} differs by "
            f"{differences[worst]:.1e}, expected at most {BOUND:.0e}"
        )
    return float(differences[worst])


def _comparable(
    image: UInt8[np.ndarray, "height width 3"], config: ImageTowerConfig, tokens_per_image: int
) -> bool:
    """Whether both towers take an image: not one column wide, and within a table of absolute positions."""
    height, width, _ = image.shape
    rows, columns = grid_for(height, width, config.patch_size, tokens_per_image)
    reach = config.position.reach
    return (rows == 1 or columns > 1) and (not reach or max(rows, columns) <= reach)
