"""A model of ours as open_clip has its own: config, weights and tokenizer, compared by open_clip itself.

    open_clip_config.json         model and preprocessing
    open_clip_model.safetensors
    config.json                   timm's of the image tower, where timm has no name for one of its shape
    tokenizer.json and others     unless the tokenizer is open_clip's own

The image tower is timm's NaFlexVit, which takes batches of images of any one shape; open_clip's transform
makes squares. open_clip never masks padding (its TextTransformer has use_pad_mask, and nothing sets it), so
the text tower has to have been trained with padding in sight, or be causal, as CLIP's is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from navit_clip.data.patches import cut_patches, picture_of
from navit_clip.errors import ExportError
from navit_clip.huggingface import open_clip_format
from navit_clip.huggingface.open_clip_weights import open_clip_weights
from navit_clip.huggingface.processor import transformers_tokenizer
from navit_clip.huggingface.siglip2 import TowerName, grid_positions, unlike
from navit_clip.huggingface.verification import Verification, compare
from navit_clip.json_object import read_json
from navit_clip.model import ClipConfig, ImageTowerConfig
from navit_clip.tokenizer import OpenClipTokenizer, PaddedTokenizer, Tokenizer
from navit_clip.weights import LoadedModel

WEIGHTS_FILE = "open_clip_model.safetensors"
TRUNK_FILE = "config.json"
TRUNKS = {
    "naflexvit_base_patch16_siglip": (768, 12, 12, 3072),
    "naflexvit_so400m_patch16_siglip": (1152, 27, 16, 4304),
}
"""timm's names of towers without QK-norm, of patches of 16 and 16 x 16 tables: width, depth, heads, MLP."""
TRUNK_NORM_EPS = 1e-6
"""Of timm's layer norms, which no config sets."""
CLEANING = "whitespace"
"""What open_clip does to captions at the least: white space and broken Unicode are mended."""


def write_open_clip(loaded: LoadedModel, folder: Path, tower: TowerName, tokens_per_image: int) -> None:
    """Writes a model into an existing empty folder, in float32, to be opened there (see `settle`).

    Args:
        loaded: the model and its tokenizer.
        folder: where to.
        tower: "both"; open_clip has no models of one.
        tokens_per_image: open_clip's transform makes squares of at most so many patches.

    Raises:
        ExportError: open_clip cannot express the model; lists every setting that is in the way.
    """
    model, tokenizer = loaded
    config = model.config
    faults = inexpressible(config, tokenizer)
    if tower != "both":
        faults.append(f"--tower is {tower}; open_clip has pairs of towers alone")
    if faults:
        raise ExportError(
            "open_clip cannot express this model:\n  "
            + "\n  ".join(faults)
            + "\nAs it is, it leaves for transformers with its own modelling file: --format own"
        )
    name = _trunk_name(config.image)
    if name is None:
        name = f"local-dir:{folder}"
        (folder / TRUNK_FILE).write_text(json.dumps(_trunk_config(config.image), indent=2) + "\n")
    settings = _settings(config, tokenizer, name, str(folder), tokens_per_image)
    (folder / open_clip_format.CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    with torch.device("meta"):
        theirs = open_clip_format.build(settings)
    trunk: Any = theirs.visual.trunk
    weights = open_clip_weights(model.state_dict(), theirs.state_dict(), trunk, config)
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if isinstance(tokenizer, PaddedTokenizer) and not isinstance(tokenizer.tokenizer, OpenClipTokenizer):
        unclean = PaddedTokenizer(tokenizer.tokenizer, tokenizer.pad_id)  # open_clip does the cleaning
        transformers_tokenizer(unclean, config.text.context_length).save_pretrained(folder)


def settle(folder: Path, address: str) -> None:
    """Says where the folder will be: its config names the tower, which lies in it, and its tokenizer by that.

    Args:
        folder: what `write_open_clip` wrote, verified where it is.
        address: local-dir:PATH or hf-hub:OWNER/MODEL.
    """
    path = folder / open_clip_format.CONFIG_FILE
    settings = read_json(path)
    vision, text = (settings["model_cfg"][part] for part in ("vision_cfg", "text_cfg"))
    if (folder / TRUNK_FILE).exists():
        vision["timm_model_name"] = address
    if "hf_tokenizer_name" in text:
        text["hf_tokenizer_name"] = address.partition(":")[2]
    path.write_text(json.dumps(settings, indent=2) + "\n")


def inexpressible(config: ClipConfig, tokenizer: Tokenizer) -> list[str]:
    """Each setting that open_clip lacks, by its dotted key: what it is, and what it would have to be."""
    settings = {
        **grid_positions(config),
        "image.norm_eps": (config.image.norm_eps, [TRUNK_NORM_EPS]),
        "text.pooling": (config.text.pooling, ["last"]),
    }
    if isinstance(tokenizer, PaddedTokenizer):
        return unlike(settings)
    settings |= {
        "text.causal": (config.text.causal, [True]),
        "text.alignment": (config.text.alignment, ["left"]),
    }
    faults = unlike(settings)
    if tokenizer.form != "open_clip":
        faults.append(f"tokenizer is of the form {tokenizer.form}; train with open_clip")
    return faults


def verify_open_clip(
    loaded: LoadedModel,
    folder: Path,
    tower: TowerName,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    captions: Sequence[str],
    tokens_per_image: int,
) -> Verification:
    """Opens the folder with open_clip and compares it with the model (see `compare`).

    Every image is compared twice: as the square that open_clip's transform makes of it, and at its own shape.
    """
    reopened = _Reopened(folder, loaded.model.config.image.patch_size, tokens_per_image)
    squares = [reopened.square(image) for image in images]
    tokenizer = loaded.tokenizer
    if isinstance(tokenizer, PaddedTokenizer) and tokenizer.cleaning == "none":
        loaded = LoadedModel(loaded.model, _cleaned(tokenizer))
    verification = compare(loaded, reopened, tower, [*images, *squares], captions, tokens_per_image)
    return replace(verification, num_images=len(images))


class _Reopened:
    def __init__(self, folder: Path, patch_size: int, tokens_per_image: int):
        import open_clip

        name = f"local-dir:{folder}"
        model, _, transform = open_clip.create_model_and_transforms(name)
        self._model: Any = model.eval()
        self._transform: Any = transform
        self._tokenize: Any = open_clip.get_tokenizer(name)
        self._patch_size = patch_size
        self._tokens_per_image = tokens_per_image

    def square(self, image: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "side side 3"]:
        """What open_clip's transform makes of an image, in bytes again."""
        pixels = self._transform(Image.fromarray(image))
        return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()

    def scalars(self) -> dict[str, float]:
        return {name: getattr(self._model, name).item() for name in ("logit_scale", "logit_bias")}

    def encode_images(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Iterator[Float[Tensor, "images dim"]]:
        cut = (cut_patches(image, self._patch_size, self._tokens_per_image) for image in images)
        encode = self._model.encode_image
        yield torch.cat([encode(picture_of(patches, self._patch_size)[None]) for patches in cut])

    def token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        rows = self._tokenize(list(captions)).tolist()
        if self._model.text.pool_type == "last":
            return rows
        end = self._tokenize.eot_token_id
        return [row[: row.index(end) + 1] for row in rows]

    def encode_captions(self, captions: Sequence[str]) -> Float[Tensor, "captions dim"]:
        return self._model.encode_text(self._tokenize(list(captions)))


def _trunk_name(image: ImageTowerConfig) -> str | None:
    shape = (image.width, image.depth, image.num_heads, image.mlp_dim)
    usual = not image.qk_norm and image.patch_size == 16 and image.position.table_side == 16
    return next((name for name, other in TRUNKS.items() if usual and shape == other), None)


def _trunk_config(image: ImageTowerConfig) -> dict[str, Any]:
    """timm's, for a tower of any shape: a name that it knows, and what is different."""
    return {
        "architecture": next(iter(TRUNKS)),
        "num_classes": 0,
        "model_args": {
            "embed_dim": image.width,
            "depth": image.depth,
            "num_heads": image.num_heads,
            "mlp_ratio": _ratio(image.mlp_dim, image.width),
            "qk_norm": image.qk_norm,
            "patch_size": image.patch_size,
            "pos_embed_grid_size": [image.position.table_side] * 2,
        },
        "pretrained_cfg": {},
    }


def _settings(
    config: ClipConfig, tokenizer: Tokenizer, trunk: str, place: str, tokens_per_image: int
) -> dict[str, Any]:
    side = math.isqrt(tokens_per_image) * config.image.patch_size
    text = config.text
    text_settings: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.num_heads,
        "layers": text.depth,
        "mlp_ratio": _ratio(text.mlp_dim, text.width),
        "qk_norm": text.qk_norm,
        "norm_kwargs": {"eps": text.norm_eps},
        "act_kwargs": {"approximate": "tanh"},
        "proj_bias": True,
        "no_causal_mask": not text.causal,
        "pool_type": "argmax",
    }
    if isinstance(tokenizer, PaddedTokenizer):
        text_settings["pool_type"] = "last"
        if not isinstance(tokenizer.tokenizer, OpenClipTokenizer):
            text_settings["hf_tokenizer_name"] = place
            text_settings["tokenizer_kwargs"] = {"clean": _cleaned(tokenizer).cleaning}
    return {
        "model_cfg": {
            "embed_dim": config.image.width,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {
                "image_size": side,
                "timm_model_name": trunk,
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": text_settings,
        },
        "preprocess_cfg": {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bilinear",
            "resize_mode": "squash",
        },
    }


def _cleaned(tokenizer: PaddedTokenizer) -> PaddedTokenizer:
    """With the least cleaning that open_clip does; its own BPE has one of its own, which ours does, too."""
    if tokenizer.cleaning != "none" or isinstance(tokenizer.tokenizer, OpenClipTokenizer):
        return tokenizer
    return PaddedTokenizer(tokenizer.tokenizer, tokenizer.pad_id, CLEANING)


def _ratio(mlp_dim: int, width: int) -> float:
    """A ratio by which timm and open_clip, who round down, come to just this many values."""
    exact = mlp_dim / width
    return exact if int(width * exact) == mlp_dim else (mlp_dim + 0.5) / width
