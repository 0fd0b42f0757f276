"""A folder for transformers, opened again as a user would open it, and compared with its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor, AutoTokenizer, Siglip2TextConfig, Siglip2TextModel

from navit_clip.huggingface.siglip2 import TowerName
from navit_clip.huggingface.verification import Verification, compare
from navit_clip.json_object import read_json
from navit_clip.weights import LoadedModel


def verify(
    loaded: LoadedModel,
    folder: Path,
    tower: TowerName,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    captions: Sequence[str],
    tokens_per_image: int,
) -> Verification:
    """Opens what `write_siglip2` or `write_own` wrote, and compares it with the model (see `compare`)."""
    reopened = _Reopened(folder, tower, loaded.model.config.text.context_length)
    return compare(loaded, reopened, tower, images, captions, tokens_per_image)


class _Reopened:
    def __init__(self, folder: Path, tower: TowerName, context_length: int):
        settings = read_json(folder / "config.json")
        trusted = "auto_map" in settings  # the code there is what we wrote just now
        # AutoModel knows Siglip2's pair and its image tower, but not its text tower.
        native_text = settings["model_type"] == Siglip2TextConfig.model_type
        model_class: Any = Siglip2TextModel if native_text else AutoModel
        self._model = model_class.from_pretrained(folder, trust_remote_code=trusted).eval()
        processor_class: Any = AutoTokenizer if tower == "text" else AutoProcessor
        self._processor = processor_class.from_pretrained(folder, trust_remote_code=trusted)
        self._is_pair = tower == "both"
        self._context_length = context_length

    def scalars(self) -> dict[str, float]:
        names = ("logit_scale", "logit_bias") if self._is_pair else ()
        return {name: getattr(self._model, name).item() for name in names}

    def encode_images(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Iterator[Float[Tensor, "images dim"]]:
        encode = self._model.get_image_features if self._is_pair else self._model
        vectors = [
            encode(**self._processor(images=Image.fromarray(image), return_tensors="pt")).pooler_output
            for image in images
        ]
        yield torch.cat(vectors)

    def token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        inputs = self._tokenized(captions)
        masks = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        return [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], masks, strict=True)]

    def encode_captions(self, captions: Sequence[str]) -> Float[Tensor, "captions dim"]:
        encode = self._model.get_text_features if self._is_pair else self._model
        return encode(**self._tokenized(captions)).pooler_output

    def _tokenized(self, captions: Sequence[str]) -> Any:
        if self._is_pair:  # its own settings say how
            return self._processor(text=list(captions), return_tensors="pt")
        settings = {"padding": "max_length", "truncation": True, "max_length": self._context_length}
        return self._processor(list(captions), **settings, return_tensors="pt")
