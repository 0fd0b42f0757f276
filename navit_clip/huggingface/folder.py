"""A model -> a folder that transformers opens without this package: weights, processor, tokenizer.

siglip2   a plain `Siglip2Model`, `Siglip2VisionModel` or `Siglip2TextModel`: nothing in it is code
own       any model of ours, with the file of code that runs it (`trust_remote_code`)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, Siglip2Model, Siglip2TextModel, Siglip2VisionModel

from navit_clip.errors import ExportError
from navit_clip.huggingface.modeling_navit_siglip import (
    NavitSiglipModel,
    NavitSiglipTextModel,
    NavitSiglipVisionModel,
)
from navit_clip.huggingface.own_architecture import own_config
from navit_clip.huggingface.processor import save_processor
from navit_clip.huggingface.siglip2 import (
    TowerName,
    inexpressible,
    siglip2_config,
    siglip2_weights,
)
from navit_clip.tokenizer import PaddedTokenizer
from navit_clip.weights import LoadedModel

MAX_SHARD_SIZE = "5GB"
"""Of a safetensors file; larger models are written in shards with an index."""


def write_siglip2(loaded: LoadedModel, folder: Path, tower: TowerName, tokens_per_image: int) -> None:
    """Writes a model, or one of its towers, into an existing empty folder, in float32.

    Args:
        loaded: the model and its tokenizer.
        folder: where to.
        tower: which part of it.
        tokens_per_image: how many patches the image processor cuts an image into at most.

    Raises:
        ExportError: SigLIP 2 cannot express the model; lists every setting that is in the way.
    """
    model, tokenizer = loaded
    faults = inexpressible(model.config, tokenizer, tower)
    if faults:
        raise ExportError(
            "SigLIP 2 cannot express this model, so it cannot leave as a native transformers model:\n  "
            + "\n  ".join(faults)
            + "\nAs it is, it leaves with its own modelling file: --format own"
        )
    config = siglip2_config(model.config)
    weights = siglip2_weights(model.state_dict(), model.config)
    classes = {
        "both": (Siglip2Model, config, ""),
        "image": (Siglip2VisionModel, config.vision_config, "vision_model."),
        "text": (Siglip2TextModel, config.text_config, "text_model."),
    }
    model_class, settings, prefix = classes[tower]
    _save(model_class(settings), prefix, weights, folder)
    save_processor(loaded, folder, tower, tokens_per_image)


def write_own(loaded: LoadedModel, folder: Path, tower: TowerName, tokens_per_image: int) -> None:
    """The same for any model of ours, with `modeling_navit_siglip.py` beside the weights.

    Raises:
        ExportError: transformers has no tokenizer like this model's.
    """
    model, tokenizer = loaded
    save_processor(loaded, folder, tower, tokens_per_image)
    token_ids = {} if tower == "image" else _token_ids(folder)
    config = own_config(model.config, isinstance(tokenizer, PaddedTokenizer), token_ids)
    classes = {
        "both": (NavitSiglipModel, config, ""),
        "image": (NavitSiglipVisionModel, config.vision_config, "image."),
        "text": (NavitSiglipTextModel, config.text_config, "text."),
    }
    model_class, settings, prefix = classes[tower]
    _save(model_class(settings), prefix, model.state_dict(), folder)
    if tower == "both":
        _offer_zero_shot(folder / "config.json")


def _save(model: Any, prefix: str, weights: Mapping[str, Tensor], folder: Path) -> None:
    model.load_state_dict(
        {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    )
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)


def _token_ids(folder: Path) -> dict[str, int]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None}


def _offer_zero_shot(path: Path) -> None:
    """Names the model's class for transformers' zero-shot pipeline, too; saving a model names one use."""
    config = json.loads(path.read_text())
    config["auto_map"]["AutoModelForZeroShotImageClassification"] = config["auto_map"]["AutoModel"]
    path.write_text(json.dumps(config, indent=2) + "\n")
