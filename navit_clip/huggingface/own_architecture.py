"""Our configs and weights as those of `modeling_navit_siglip.py`, for models that SigLIP 2 cannot express.

Weights keep their names. A folder holds a copy of that file, which transformers runs where it is trusted to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from navit_clip.errors import CheckpointError, ConfigError
from navit_clip.huggingface.modeling_navit_siglip import (
    NavitSiglipConfig,
    NavitSiglipModel,
    NavitSiglipTextConfig,
    NavitSiglipTextModel,
    NavitSiglipVisionConfig,
    NavitSiglipVisionModel,
)
from navit_clip.huggingface.siglip2 import size_faults
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig
from navit_clip.model.blocks import TransformerConfig

MODEL_TYPE = NavitSiglipConfig.model_type

_TRANSFORMER = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "norm_eps": "layer_norm_eps",
    "qk_norm": "qk_norm",
    "biases": "biases",
}
_POSITION = {name: f"position_{name}" for name in ("kind", "coordinates", "combination", "table_side")}
_TEXT = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "causal": "causal",
    "pooling": "pooling",
    "alignment": "alignment",
}

_SIZES = {
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("patch_size", "position_table_side", "vocab_size", "max_position_embeddings"),
}

NavitSiglipConfig.register_for_auto_class()
NavitSiglipVisionConfig.register_for_auto_class()
NavitSiglipTextConfig.register_for_auto_class()
for _model_class in (NavitSiglipModel, NavitSiglipVisionModel, NavitSiglipTextModel):
    _model_class.register_for_auto_class("AutoModel")


def own_config(config: ClipConfig, attended_padding: bool, token_ids: dict[str, Any]) -> NavitSiglipConfig:
    """The transformers config of a model of ours.

    Args:
        config: of the model.
        attended_padding: whether captions were trained padded.
        token_ids: of the tokenizer, such as pad_token_id.
    """
    image, text = config.image, config.text
    vision_config = NavitSiglipVisionConfig(
        **_renamed(image, _TRANSFORMER), **_renamed(image.position, _POSITION), patch_size=image.patch_size
    )
    text_config = NavitSiglipTextConfig(
        **_renamed(text, _TRANSFORMER),
        **_renamed(text, _TEXT),
        **token_ids,
        projection_size=image.width,
        attended_padding=attended_padding,
    )
    return NavitSiglipConfig(vision_config=vision_config, text_config=text_config)


def clip_config(settings: Mapping[str, Any], where: str = "config.json") -> ClipConfig:
    """The model that `own_config` was made for, from the config.json that it was saved as.

    Args:
        settings: what is in the file.
        where: the file, for errors.

    Raises:
        CheckpointError: settings are missing, or impossible.
    """
    vision, text = settings.get("vision_config") or {}, settings.get("text_config") or {}
    needed = {"vision_config": [*_TRANSFORMER.values(), *_POSITION.values(), "patch_size"]}
    needed["text_config"] = [*_TRANSFORMER.values(), *_TEXT.values()]
    found = {"vision_config": vision, "text_config": text}
    if missing := [
        f"{part}.{name}" for part, names in needed.items() for name in names if name not in found[part]
    ]:
        raise CheckpointError(f"{where}: not whole: there is no {', '.join(missing)}")
    sizes = {part: [name for name in names if name in _SIZES] for part, names in needed.items()}
    if faults := size_faults(
        {f"{part}.{name}": found[part][name] for part, names in sizes.items() for name in names}
    ):
        raise CheckpointError(f"{where}: not a model of ours: {'; '.join(faults)}")
    try:
        return ClipConfig(
            image=ImageTowerConfig(
                **_restored(vision, _TRANSFORMER),
                patch_size=vision["patch_size"],
                position=PositionConfig(**_restored(vision, _POSITION)),
            ),
            text=TextTowerConfig(**_restored(text, _TRANSFORMER), **_restored(text, _TEXT)),
        )
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{where}: not a model of ours: {error}") from error


def _renamed(config: TransformerConfig | PositionConfig, names: dict[str, str]) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs in names.items()}


def _restored(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: settings[theirs] for ours, theirs in names.items()}
