"""An exported folder against the model that it came from, opened as a user of transformers would open it.

Images go through both preprocessings, ours and the folder's, as the same RGB pixels. Images whose grid is
one column wide are left out: older transformers on a CPU give `Siglip2Model` wrong position embeddings there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor, AutoTokenizer, Siglip2TextConfig, Siglip2TextModel

from navit_clip.batch import Captions, PackedImages, caption_identity
from navit_clip.data.patches import cut_patches
from navit_clip.data.resize import grid_for
from navit_clip.errors import ExportError
from navit_clip.huggingface.siglip2 import TowerName
from navit_clip.huggingface.weight_files import read_json
from navit_clip.model import ImageTowerConfig
from navit_clip.weights import LoadedModel

BOUND = 1e-5
"""Largest difference between two values of unit vectors."""


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the exported model is from ours, at most."""

    num_images: int
    image_difference: float
    num_captions: int
    caption_difference: float


def verify(
    loaded: LoadedModel,
    folder: Path,
    tower: TowerName,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    captions: Sequence[str],
    tokens_per_image: int,
) -> Verification:
    """Reloads the folder and compares scalars, token ids and embeddings, on the CPU in float32.

    Raises:
        ExportError: they differ.
    """
    image_difference = caption_difference = 0.0
    trusted = "auto_map" in read_json(folder / "config.json")  # the code there is what we wrote just now
    model = _reload(folder, trusted)
    processor_class = AutoTokenizer if tower == "text" else AutoProcessor
    processor = processor_class.from_pretrained(folder, trust_remote_code=trusted)
    if tower == "both":
        _compare_scalars(loaded, model)
    if tower == "text":
        images = []
    else:
        images = [image for image in images if comparable(image, loaded.model.config.image, tokens_per_image)]
        if not images:
            raise ExportError("there is no image to verify the export on; name some with --images")
        image_difference = _compare_images(loaded, model, processor, images, tokens_per_image)
    if tower == "image":
        captions = []
    else:
        caption_difference = _compare_captions(loaded, model, processor, tower, captions)
    return Verification(len(images), image_difference, len(captions), caption_difference)


def _reload(folder: Path, trusted: bool) -> Any:
    # AutoModel knows Siglip2's pair and its image tower, but not its text tower.
    native_text = read_json(folder / "config.json")["model_type"] == Siglip2TextConfig.model_type
    model_class = Siglip2TextModel if native_text else AutoModel
    return model_class.from_pretrained(folder, trust_remote_code=trusted).eval()


@torch.no_grad()
def _compare_images(loaded, model, processor, images, tokens_per_image) -> float:
    encode = getattr(model, "get_image_features", model)
    patch_size = loaded.model.config.image.patch_size
    theirs = [
        encode(**processor(images=Image.fromarray(image), return_tensors="pt")).pooler_output
        for image in images
    ]
    packed = PackedImages.pack([cut_patches(image, patch_size, tokens_per_image) for image in images])
    return difference("image", loaded.model.encode_images(packed), torch.cat(theirs))


@torch.no_grad()
def _compare_captions(loaded, model, processor, tower, captions) -> float:
    context_length = loaded.model.config.text.context_length
    if tower == "both":
        inputs = processor(text=list(captions), return_tensors="pt")
    else:
        settings = {"padding": "max_length", "truncation": True, "max_length": context_length}
        inputs = processor(list(captions), **settings, return_tensors="pt")
    ids = loaded.tokenizer.encode(captions, context_length)
    masks = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    for caption, ours, padded, mask in zip(captions, ids, inputs["input_ids"], masks, strict=True):
        theirs = padded[mask.bool()].tolist()
        if theirs != ours:
            raise ExportError(f"the exported tokenizer reads {caption!r} as {theirs}, expected {ours}")
    encode = getattr(model, "get_text_features", model)
    packed = Captions.pack(ids, [caption_identity(caption) for caption in captions])
    return difference("caption", loaded.model.encode_captions(packed), encode(**inputs).pooler_output)


def _compare_scalars(loaded, model) -> None:
    for name in ("logit_scale", "logit_bias"):
        ours, theirs = getattr(loaded.model, name).item(), getattr(model, name).item()
        if theirs != ours:
            raise ExportError(
                f"the exported model is not the trained one: its {name} is {theirs}, not {ours}"
            )


def difference(kind: str, ours: Float[Tensor, "vectors dim"], pooled: Float[Tensor, "vectors dim"]) -> float:
    differences = (F.normalize(pooled, dim=-1) - ours).abs().amax(dim=-1)
    worst = int(differences.argmax())
    if not bool((differences <= BOUND).all()):  # a NaN is not within the bound either
        raise ExportError(
            f"the exported model is not the trained one: the embedding of {kind} {worst} differs by "
            f"{differences[worst]:.1e}, expected at most {BOUND:.0e}"
        )
    return float(differences[worst])


def comparable(
    image: UInt8[np.ndarray, "height width 3"], config: ImageTowerConfig, tokens_per_image: int
) -> bool:
    """Whether both towers take an image: not one column wide, and within a table of absolute positions."""
    height, width, _ = image.shape
    rows, columns = grid_for(height, width, config.patch_size, tokens_per_image)
    reach = config.position.reach
    return (rows == 1 or columns > 1) and (not reach or max(rows, columns) <= reach)
