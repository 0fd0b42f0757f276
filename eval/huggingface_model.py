"""Hugging Face folders as evaluation takes them: CLIP, SigLIP, SigLIP 2, and what `navit-clip export` writes.

SigLIP 2 NaFlex and our exports of either format run packed, in our towers; the code that lies in an export is
not run. CLIP and SigLIP (and SigLIP 2 at a fixed size, which is `siglip`, too) run as transformers runs them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from eval.fixed_size import TransformPreparation, autocast, refuse_packed_settings
from eval.image_config import ImageConfig
from eval.model import JudgedModel, PackedModel
from navit_clip.errors import CheckpointError
from navit_clip.huggingface.importing import import_folder
from navit_clip.huggingface.own_architecture import MODEL_TYPE
from navit_clip.huggingface.quiet import quiet_transformers

CONFIG_FILE = "config.json"
PACKED, SQUARE = ("siglip2", MODEL_TYPE), ("clip", "siglip")
"""Model types with both towers."""


def load_huggingface(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> JudgedModel:
    """The model of a transformers folder.

    Raises:
        CheckpointError: the folder's model is of another kind, lacks a tower, or cannot be read.
    """
    kind = _kind(folder)
    if kind in PACKED:
        return _load_packed(folder, name, device, dtype)
    if kind in SQUARE:
        return SquareModel(folder, kind, name, device, dtype)
    whole, _, tower = kind.removesuffix("_model").rpartition("_")
    if whole in (*PACKED, *SQUARE) and tower in ("text", "vision"):
        missing = "image" if tower == "text" else "text"
        raise CheckpointError(f"{folder}: a {kind} has no {missing} tower; zero-shot evaluation needs both")
    expected = ", ".join((*SQUARE, *PACKED))
    raise CheckpointError(f"{folder}: expected a model of type {expected}, found {kind!r}")


class SquareModel:
    """`CLIPModel` or `SiglipModel`, which take square images of one size.

    CLIP's text tower is causal and pools the end token, so its captions cost what they have. SigLIP's was
    trained on captions padded to one length, the padding attended.
    """

    def __init__(self, folder: Path, kind: str, name: str, device: torch.device, dtype: torch.dtype):
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        try:
            model = AutoModel.from_pretrained(folder, dtype=torch.float32)
            self._image_processor = AutoImageProcessor.from_pretrained(folder)
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: transformers cannot read it: {error}") from error
        self.name = name
        self.pretrained = str(folder)
        self.module = model.to(device).eval()
        self.logit_scale = model.logit_scale.detach().float().exp().item()
        self.precision = str(dtype).removeprefix("torch.")
        self._model = model
        self._device = device
        self._dtype = dtype
        self._padded = kind == "siglip"
        with torch.no_grad():
            self.embedding_dim = self.encode_captions(self.tokenize(["a"])).shape[1]

    def preparation(self, config: ImageConfig) -> TransformPreparation:
        refuse_packed_settings(config, self.name)
        vision = self._model.config.vision_config
        return TransformPreparation(
            ImageProcessing(self._image_processor), (vision.image_size // vision.patch_size) ** 2
        )

    def encode_images(self, pack: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images dim"]:
        with autocast(self._device, self._dtype):
            return _unit(self._model.get_image_features(pixel_values=pack.to(self._device)))

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        length = self._model.config.text_config.max_position_embeddings
        padding = "max_length" if self._padded else False
        return self._tokenizer(list(captions), truncation=True, max_length=length, padding=padding)[
            "input_ids"
        ]

    def encode_captions(self, ids: list[list[int]]) -> Float[Tensor, "captions dim"]:
        longest, pad = max(map(len, ids)), self._tokenizer.pad_token_id
        rows = torch.tensor([[*caption, *[pad] * (longest - len(caption))] for caption in ids])
        with autocast(self._device, self._dtype):
            return _unit(self._model.get_text_features(input_ids=rows.to(self._device)))


class ImageProcessing:
    """A transformers image processor as a transform of one image."""

    def __init__(self, processor: Any):
        self._processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.array(image)  # a copy, since torch warns of arrays that it may not write to
        processed = self._processor(images=pixels, return_tensors="pt", input_data_format="channels_last")
        return processed["pixel_values"][0]


def _load_packed(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> PackedModel:
    with quiet_transformers():
        model, tokenizer = import_folder(folder).loaded
    model.to(device).compute_dtype = dtype
    return PackedModel(model, tokenizer, name, str(folder))


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: not a readable model config: {error}") from error


def _unit(features: Any) -> Float[Tensor, "rows dim"]:
    """Unit vectors of what transformers calls features: a tensor, or an output that holds them pooled."""
    return F.normalize(getattr(features, "pooler_output", features), dim=-1).float()
