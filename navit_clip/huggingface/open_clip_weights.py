"""Our state dict <-> open_clip's, for a pair of a timm tower and open_clip's text tower.

The image tower is a VisionTransformer or a NaFlexVit: the one embeds patches by a convolution and holds its
table of positions at the top, the other by a linear layer, with the table beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.naflexvit import NaFlexVit
from torch import Tensor

from navit_clip.huggingface.siglip import flattened_convolution
from navit_clip.huggingface.siglip2 import bias_or_zeros, grid_table
from navit_clip.model import ClipConfig, TwoTowers
from navit_clip.weights import check_weights

# Modules with a weight and a bias, ours and theirs.
_OUTSIDE_BLOCKS = {
    "image.transformer.norm": "visual.trunk.norm",
    "image.pooling.output": "visual.trunk.attn_pool.proj",
    "image.pooling.norm": "visual.trunk.attn_pool.norm",
    "image.pooling.mlp.expand": "visual.trunk.attn_pool.mlp.fc1",
    "image.pooling.mlp.contract": "visual.trunk.attn_pool.mlp.fc2",
    "text.transformer.norm": "text.ln_final",
    "text.head": "text.text_projection",
}
_IN_IMAGE_BLOCK = {
    "attention_norm": "norm1",
    "attention.query_key_value": "attn.qkv",
    "attention.output": "attn.proj",
    "mlp_norm": "norm2",
    "mlp.expand": "mlp.fc1",
    "mlp.contract": "mlp.fc2",
}
_IMAGE_QK_NORM = {"attention.query_norm": "attn.q_norm", "attention.key_norm": "attn.k_norm"}
_IN_TEXT_BLOCK = {
    "attention_norm": "ln_1",
    "attention.output": "attn.out_proj",
    "mlp_norm": "ln_2",
    "mlp.expand": "mlp.c_fc",
    "mlp.contract": "mlp.c_proj",
}
_TEXT_QK_NORM = {"attention.query_norm": "attn.ln_q", "attention.key_norm": "attn.ln_k"}
_TENSORS = {
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
    "image.pooling.probe": "visual.trunk.attn_pool.latent",
    "text.token_embedding.weight": "text.token_embedding.weight",
    "text.position_embedding.weight": "text.positional_embedding",
}
_QUERY, _KEY_VALUE = "visual.trunk.attn_pool.q", "visual.trunk.attn_pool.kv"


def clip_weights(
    weights: Mapping[str, Tensor], theirs: Mapping[str, Tensor], trunk: Any, config: ClipConfig, where: str
) -> dict[str, Tensor]:
    """An open_clip state dict as ours.

    Args:
        weights: what was found.
        theirs: the state dict of open_clip's model, of which names and shapes count.
        trunk: its timm tower.
        config: ours of the same model.
        where: what is being read, for errors.

    Raises:
        CheckpointError: the weights are not those of the model; lists what differs.
    """
    check_weights(weights, theirs, where)
    with torch.device("meta"):
        ours = TwoTowers(config).state_dict()
    out = {name: weights[other] for name, other in _names(config).items()}
    out["image.position.table"] = weights[_table(trunk)]
    embedding = weights[f"{_embedding(trunk)}.weight"]
    out["image.patch_embedding.weight"] = (
        flattened_convolution(embedding) if embedding.ndim == 4 else embedding
    )
    out["image.patch_embedding.bias"] = weights[f"{_embedding(trunk)}.bias"]
    for kind in ("weight", "bias"):
        parts = [weights[f"{part}.{kind}"] for part in (_QUERY, _KEY_VALUE)]
        out[f"image.pooling.query_key_value_{kind}"] = torch.cat(parts)
    # Scalars, the probe and the table have axes of one there that they lack here, or the other way round.
    return {name: weight.reshape(ours[name].shape) for name, weight in out.items()}


def open_clip_weights(
    weights: Mapping[str, Tensor], theirs: Mapping[str, Tensor], trunk: NaFlexVit, config: ClipConfig
) -> dict[str, Tensor]:
    """Our state dict as open_clip's; biases that we lack become zeros, row and column tables their sum."""
    out = {}
    for ours, name in _names(config).items():
        is_bias = ours.endswith("bias") and ours != "logit_bias"
        out[name] = bias_or_zeros(weights, f"{ours[:-4]}weight", ours) if is_bias else weights[ours]
    is_grid = config.image.position.kind == "grid"
    out[_table(trunk)] = weights["image.position.table"] if is_grid else grid_table(weights)
    pooling, width = "image.pooling.query_key_value", config.image.width
    fused = {
        "weight": weights[f"{pooling}_weight"],
        "bias": bias_or_zeros(weights, f"{pooling}_weight", f"{pooling}_bias"),
    }
    for kind, parts in fused.items():
        out[f"{_embedding(trunk)}.{kind}"] = weights[f"image.patch_embedding.{kind}"]
        out[f"{_QUERY}.{kind}"], out[f"{_KEY_VALUE}.{kind}"] = parts[:width], parts[width:]
    return {name: weight.reshape(theirs[name].shape).contiguous() for name, weight in out.items()}


def embedding_layer(trunk: Any) -> Any:
    """The layer that embeds patches, of either timm tower."""
    return trunk.embeds if isinstance(trunk, NaFlexVit) else trunk.patch_embed


def _names(config: ClipConfig) -> dict[str, str]:
    """Our tensors that keep their values, and what they are called there."""
    image = _IN_IMAGE_BLOCK | (_IMAGE_QK_NORM if config.image.qk_norm else {})
    text = _IN_TEXT_BLOCK | (_TEXT_QK_NORM if config.text.qk_norm else {})
    modules = dict(_OUTSIDE_BLOCKS)
    names = dict(_TENSORS)
    for number in range(config.image.depth):
        ours, theirs = f"image.transformer.blocks.{number}", f"visual.trunk.blocks.{number}"
        modules |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in image.items()}
    for number in range(config.text.depth):
        ours, theirs = f"text.transformer.blocks.{number}", f"text.transformer.resblocks.{number}"
        modules |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in text.items()}
        for kind in ("weight", "bias"):
            names[f"{ours}.attention.query_key_value.{kind}"] = f"{theirs}.attn.in_proj_{kind}"
    return names | {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }


def _embedding(trunk: Any) -> str:
    return f"visual.trunk.{'embeds' if isinstance(trunk, NaFlexVit) else 'patch_embed'}.proj"


def _table(trunk: Any) -> str:
    return f"visual.trunk.{'embeds.' if isinstance(trunk, NaFlexVit) else ''}pos_embed"
