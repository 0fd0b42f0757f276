"""open_clip's SigLIP models (a timm tower with attention pooling, open_clip's text tower) as ours.

What bears on the outputs is read from their config and from the timm tower that it names, built without
weights. Whatever our towers lack is listed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from navit_clip.errors import CheckpointError, with_faults
from navit_clip.huggingface.open_clip_weights import embedding_layer
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig

CONFIG_FILE = "open_clip_config.json"
EXACT_GELU = (
    "has the exact GELU, ours is the tanh approximation, with which Google trained SigLIP's weights; "
    "--tanh-gelu imports them so, about 1e-3 away from what open_clip computes"
)

_TEXT = {
    "hf_model_name": None,
    "proj_type": "linear",
    "proj_bias": True,
    "embed_cls": False,
    "final_ln_after_pool": False,
    "ls_init_value": None,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
"""What a text tower must be."""
_ATTENTION = {(True, "last"), (False, "last"), (False, "argmax")}
"""And its no_causal_mask and pool_type together: an end token is pooled only where padding is not seen."""


class OpenClipModel(NamedTuple):
    """An open_clip model's settings."""

    vision: CLIPVisionCfg
    text: CLIPTextCfg
    embed_dim: int
    trunk: Any
    """The timm tower, a VisionTransformer or a NaFlexVit, without its weights."""


def open_clip_model(config: Mapping[str, Any], tanh_gelu: bool = False) -> OpenClipModel:
    """Reads a config as open_clip's loader does.

    Args:
        config: what open_clip_config.json holds.
        tanh_gelu: take an exact GELU for the tanh approximation.

    Raises:
        CheckpointError: the config is not open_clip's, or the model is one that our towers cannot express;
            lists everything that stands in the way.
    """
    try:
        model_config = dict(config["model_cfg"])
        vision = CLIPVisionCfg(**model_config["vision_cfg"])
        text = CLIPTextCfg(**model_config["text_cfg"])
        embed_dim = model_config["embed_dim"]
    except (LookupError, TypeError) as error:
        raise CheckpointError(f"{CONFIG_FILE}: not a model that open_clip reads: {error!r}") from error
    faults = []
    if model_config.get("init_logit_bias") is None:
        faults.append("init_logit_bias: expected a number, found none: not a model with a sigmoid loss")
    faults += _text_faults(text, bool(model_config.get("quick_gelu")), tanh_gelu)
    trunk = None
    if vision.timm_model_name is None:
        faults.append(
            "vision_cfg: open_clip's own vision transformer (class token, a norm before its blocks, no "
            "attention pooling); expected a timm_model_name"
        )
    else:
        trunk, trunk_faults = _trunk(vision, tanh_gelu)
        faults += trunk_faults
    if trunk is not None and trunk.embed_dim != embed_dim:
        faults.append(f"embed_dim: expected the tower's width {trunk.embed_dim}, found {embed_dim}")
    if faults or trunk is None:
        raise CheckpointError(with_faults("an open_clip model that our towers cannot express", faults))
    return OpenClipModel(vision, text, embed_dim, trunk)


def build(config: Mapping[str, Any]) -> CustomTextCLIP:
    """open_clip's own model for a config that `open_clip_model` has read; its weights are random."""
    settings = {name: value for name, value in config["model_cfg"].items() if name != "custom_text"}
    vision = {**settings["vision_cfg"], "timm_model_pretrained": False}
    return CustomTextCLIP(**{**settings, "vision_cfg": vision})


def clip_config(model: OpenClipModel) -> ClipConfig:
    """Our config of an open_clip model."""
    trunk, text = model.trunk, model.text
    block = trunk.blocks[0]
    return ClipConfig(
        image=ImageTowerConfig(
            width=trunk.embed_dim,
            depth=len(trunk.blocks),
            num_heads=block.attn.num_heads,
            mlp_dim=block.mlp.fc1.out_features,
            qk_norm=isinstance(getattr(block.attn, "q_norm", None), nn.LayerNorm),
            biases=True,
            norm_eps=block.norm1.eps,
            patch_size=embedding_layer(trunk).patch_size[0],
            position=PositionConfig(kind="grid", table_side=_table_side(trunk)),
        ),
        text=TextTowerConfig(
            width=text.width,
            depth=text.layers,
            num_heads=text.heads,
            mlp_dim=int(text.width * text.mlp_ratio),
            qk_norm=text.qk_norm,
            biases=True,
            norm_eps=(text.norm_kwargs or {}).get("eps", 1e-5),
            vocab_size=text.vocab_size,
            context_length=text.context_length,
            causal=not text.no_causal_mask,
            alignment="left" if text.pool_type == "argmax" else "right",
        ),
    )


def _text_faults(text: CLIPTextCfg, quick_gelu: bool, tanh_gelu: bool) -> list[str]:
    found = asdict(text)
    faults = [
        f"text_cfg.{key}: expected {expected}, found {found[key]}"
        for key, expected in _TEXT.items()
        if found[key] != expected
    ]
    if (text.no_causal_mask, text.pool_type) not in _ATTENTION:
        faults.append(
            f"text_cfg.pool_type: expected last{'' if text.no_causal_mask else ' or argmax'}, "
            f"found {text.pool_type}"
        )
    if text.pool_type == "argmax" and text.hf_tokenizer_name is not None:
        faults.append(
            "text_cfg.hf_tokenizer_name: expected none beside pool_type argmax, which needs an end token "
            f"of the largest id, found {text.hf_tokenizer_name}"
        )
    if quick_gelu:
        faults.append("quick_gelu: expected false, found true")
    elif (text.act_kwargs or {}).get("approximate") != "tanh" and not tanh_gelu:
        faults.append(f"text_cfg: {EXACT_GELU}")
    return faults


def _trunk(vision: CLIPVisionCfg, tanh_gelu: bool) -> tuple[Any, list[str]]:
    """The timm tower without its weights, and what of it our image tower lacks."""
    if vision.timm_pool != "map" or vision.timm_proj not in ("none", "", None):
        found = f"timm_pool {vision.timm_pool} and timm_proj {vision.timm_proj}"
        return None, [f"vision_cfg: expected timm_pool map and timm_proj none, found {found}"]
    name = str(vision.timm_model_name)
    try:
        with torch.device("meta"):
            trunk = timm.create_model(name, pretrained=False, num_classes=0, global_pool="map")
    except (RuntimeError, TypeError, AssertionError, ValueError, OSError) as error:
        return None, [f"vision_cfg.timm_model_name: timm {timm.__version__} makes no {name}: {error}"]
    if not isinstance(trunk, VisionTransformer | NaFlexVit):
        faults = [f"is a {type(trunk).__name__}, not a plain vision transformer"]
    else:
        faults = _trunk_faults(trunk, tanh_gelu)
    return trunk, [f"vision_cfg.timm_model_name: {name} {fault}" for fault in faults]


def _trunk_faults(trunk: Any, tanh_gelu: bool) -> list[str]:
    block, pool = trunk.blocks[0], trunk.attn_pool
    parts = {
        "a norm before its blocks": trunk.norm_pre,
        "a norm after pooling": trunk.fc_norm,
        "layer scale": getattr(block, "ls1", nn.Identity()),
    }
    faults = [f"has {part}" for part, module in parts.items() if not isinstance(module, nn.Identity)]
    if not isinstance(getattr(block.attn, "q_norm", nn.Identity()), nn.Identity | nn.LayerNorm):
        faults.append("has another norm of queries and keys")
    if trunk.num_prefix_tokens:
        faults.append(f"has {trunk.num_prefix_tokens} class or register tokens")
    if pool is None or pool.num_heads != block.attn.num_heads or pool.pos_embed is not None:
        faults.append("has another attention pooling")
    if not _table_side(trunk):
        faults.append("has no square table of learned positions")
    if isinstance(trunk, NaFlexVit) and trunk.embeds.pos_embed_interp_mode != "bilinear":
        faults.append(f"resizes positions {trunk.embeds.pos_embed_interp_mode}, ours are bilinear")
    exact = isinstance(block.mlp.act, nn.GELU)
    if not _is_tanh_gelu(block.mlp.act) and not (tanh_gelu and exact):
        faults.append(EXACT_GELU if exact else "has another activation")
    return faults


def _table_side(trunk: Any) -> int:
    """Entries per axis of the table of positions; 0 where there is no square one."""
    table = trunk.embeds.pos_embed if isinstance(trunk, NaFlexVit) else trunk.pos_embed
    if not isinstance(table, Tensor):
        return 0
    side = math.isqrt(table.numel() // trunk.embed_dim)
    return side if side**2 * trunk.embed_dim == table.numel() else 0


def _is_tanh_gelu(activation: nn.Module) -> bool:
    values = torch.linspace(-4, 4, 33)
    return torch.equal(activation(values), F.gelu(values, approximate="tanh"))
