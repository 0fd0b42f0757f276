"""Our weights <-> transformers' `Siglip2Model`: pure maps between configs and between state dicts.

Out: biases that we lack become zeros, and a factorized sum of fractional tables becomes the grid table
R[i] + C[j] that it is. In: every `Siglip2Config` has a `ClipConfig`; only `alignment: right` follows the
way in which transformers' own tokenizer pads.

`inexpressible` says what of a config SigLIP 2 has no place for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig

from navit_clip.errors import CheckpointError, with_faults
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig
from navit_clip.model.blocks import TransformerConfig
from navit_clip.tokenizer import BEGIN, END, PAD, SPECIAL_TOKENS, Tokenizer

CONTEXT_LENGTH = 64
"""transformers' zero-shot pipeline pads and cuts every SigLIP caption to this length."""
TowerName = Literal["both", "image", "text"]
ACTIVATION = "gelu_pytorch_tanh"

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_TEXT_SIZES = ("vocab_size", "max_position_embeddings")

# Modules with a weight and a bias, ours and theirs.
_OUTSIDE_BLOCKS = {
    "image.patch_embedding": "vision_model.embeddings.patch_embedding",
    "image.transformer.norm": "vision_model.post_layernorm",
    "image.pooling.output": "vision_model.head.attention.out_proj",
    "image.pooling.norm": "vision_model.head.layernorm",
    "image.pooling.mlp.expand": "vision_model.head.mlp.fc1",
    "image.pooling.mlp.contract": "vision_model.head.mlp.fc2",
    "text.transformer.norm": "text_model.final_layer_norm",
    "text.head": "text_model.head",
}
_IN_BLOCK = {
    "attention_norm": "layer_norm1",
    "attention.output": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "mlp.expand": "mlp.fc1",
    "mlp.contract": "mlp.fc2",
}
# Tensors that keep their shape.
_TENSORS = {
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
    "image.pooling.query_key_value_weight": "vision_model.head.attention.in_proj_weight",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.position_embedding.weight": "text_model.embeddings.position_embedding.weight",
}
_POOLING_BIAS = ("image.pooling.query_key_value_bias", "vision_model.head.attention.in_proj_bias")
_PROBE = ("image.pooling.probe", "vision_model.head.probe")
_TABLE = ("image.position.table", "vision_model.embeddings.position_embedding.weight")


def inexpressible(config: ClipConfig, tokenizer: Tokenizer, tower: TowerName = "both") -> list[str]:
    """Each setting that SigLIP 2 lacks, by its dotted key: what it is, and what it would have to be."""
    image = {"image.qk_norm": (config.image.qk_norm, [False]), **grid_positions(config)}
    text = {
        "text.qk_norm": (config.text.qk_norm, [False]),
        "text.causal": (config.text.causal, [False]),
        "text.pooling": (config.text.pooling, ["last"]),
        "text.alignment": (config.text.alignment, ["right"]),
        "text.context_length": (config.text.context_length, [CONTEXT_LENGTH]),
    }
    faults = unlike({**(image if tower != "text" else {}), **(text if tower != "image" else {})})
    if tower != "image" and tokenizer.form != "siglip2":
        faults.append(
            f"tokenizer is of the form {tokenizer.form}; train with one from `navit-clip tokenizer train`"
        )
    return faults


def grid_positions(config: ClipConfig) -> dict[str, tuple[Any, list[Any]]]:
    """What an image tower's positions are, and have to be to leave as SigLIP 2's one table."""
    position = config.image.position
    return {
        "image.position.kind": (position.kind, ["learned", "grid"]),
        "image.position.coordinates": (position.coordinates, ["fractional"]),
        "image.position.combination": (position.combination, ["sum"]),
    }


def unlike(settings: Mapping[str, tuple[Any, list[Any]]]) -> list[str]:
    """Each setting that is none of those beside it."""
    return [
        f"model.{key} is {_shown(found)}; train with {' or '.join(map(_shown, expressible))}"
        for key, (found, expressible) in settings.items()
        if found not in expressible
    ]


def siglip2_config(config: ClipConfig) -> Siglip2Config:
    """The transformers config of a model of which nothing is inexpressible."""
    image, text = config.image, config.text
    vision_config = {
        **_transformer_settings(image),
        "patch_size": image.patch_size,
        "num_patches": image.position.table_side**2,
    }
    text_config = {
        **_transformer_settings(text),
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "projection_size": image.width,
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "bos_token_id": SPECIAL_TOKENS.index(BEGIN),
        "eos_token_id": SPECIAL_TOKENS.index(END),
    }
    return Siglip2Config(
        text_config=Siglip2TextConfig(**text_config), vision_config=Siglip2VisionConfig(**vision_config)
    )


def clip_config(config: Siglip2Config) -> ClipConfig:
    """Our config of a Siglip2 model.

    Raises:
        CheckpointError: sizes are impossible, the model has no pooling head, another activation, dropout, a
            table that is not square, or towers whose embeddings differ in length; lists all that is wrong.
    """
    vision, text = config.vision_config, config.text_config
    assert isinstance(vision, Siglip2VisionConfig)
    assert isinstance(text, Siglip2TextConfig)
    faults = size_faults(
        {f"vision_config.{name}": getattr(vision, name) for name in (*_SIZES, "patch_size", "num_patches")}
        | {f"text_config.{name}": getattr(text, name) for name in (*_SIZES, *_TEXT_SIZES)}
    )
    needed = {
        "vision_config.vision_use_head": (vision.vision_use_head, True),
        "vision_config.hidden_act": (vision.hidden_act, ACTIVATION),
        "vision_config.attention_dropout": (vision.attention_dropout, 0),
        "vision_config.num_channels": (vision.num_channels, 3),
        "text_config.hidden_act": (text.hidden_act, ACTIVATION),
        "text_config.attention_dropout": (text.attention_dropout, 0),
        "text_config.projection_size": (text.projection_size, vision.hidden_size),
    }
    faults += [
        f"{key} is {found}, expected {expected}"
        for key, (found, expected) in needed.items()
        if found != expected
    ]
    side = math.isqrt(max(0, vision.num_patches))
    if side**2 != vision.num_patches:
        faults.append(f"vision_config.num_patches is {vision.num_patches}, expected the square of a number")
    if faults or not isinstance(vision.patch_size, int):
        raise CheckpointError(with_faults("a Siglip2 model that our towers cannot express", faults))
    return ClipConfig(
        image=ImageTowerConfig(
            **_tower_settings(vision),
            patch_size=vision.patch_size,
            position=PositionConfig(kind="grid", table_side=side),
        ),
        text=TextTowerConfig(
            **_tower_settings(text), vocab_size=text.vocab_size, context_length=text.max_position_embeddings
        ),
    )


def siglip2_weights(weights: Mapping[str, Tensor], config: ClipConfig) -> dict[str, Tensor]:
    """Our state dict as `Siglip2Model`'s, for a model of which nothing is inexpressible."""
    out = {theirs: weights[ours] for ours, theirs in _TENSORS.items()}
    for ours, theirs in _modules(config).items():
        out[f"{theirs}.weight"] = weights[f"{ours}.weight"]
        out[f"{theirs}.bias"] = bias_or_zeros(weights, f"{ours}.weight", f"{ours}.bias")
    for ours, theirs in _attentions(config).items():
        fused_weight = weights[f"{ours}.weight"]
        fused_bias = bias_or_zeros(weights, f"{ours}.weight", f"{ours}.bias")
        for letter, weight, bias in zip("qkv", fused_weight.chunk(3), fused_bias.chunk(3), strict=True):
            out[f"{theirs}.{letter}_proj.weight"] = weight
            out[f"{theirs}.{letter}_proj.bias"] = bias
    ours, theirs = _POOLING_BIAS
    out[theirs] = bias_or_zeros(weights, "image.pooling.query_key_value_weight", ours)
    ours, theirs = _PROBE
    out[theirs] = weights[ours][None]
    ours, theirs = _TABLE
    out[theirs] = weights[ours] if config.image.position.kind == "grid" else grid_table(weights)
    return out


def clip_weights(weights: Mapping[str, Tensor], config: ClipConfig) -> dict[str, Tensor]:
    """`Siglip2Model`'s state dict as ours, for the `clip_config` of that model."""
    out = {ours: weights[theirs] for ours, theirs in [*_TENSORS.items(), _POOLING_BIAS, _TABLE]}
    for kind in ("weight", "bias"):
        for ours, theirs in _modules(config).items():
            out[f"{ours}.{kind}"] = weights[f"{theirs}.{kind}"]
        for ours, theirs in _attentions(config).items():
            parts = [weights[f"{theirs}.{letter}_proj.{kind}"] for letter in "qkv"]
            out[f"{ours}.{kind}"] = torch.cat(parts)
    ours, theirs = _PROBE
    out[ours] = weights[theirs][0]
    return out


def _modules(config: ClipConfig) -> dict[str, str]:
    in_blocks = {
        f"{block}.{ours}": f"{layer}.{theirs}"
        for block, layer in _blocks(config).items()
        for ours, theirs in _IN_BLOCK.items()
    }
    return {**_OUTSIDE_BLOCKS, **in_blocks}


def _attentions(config: ClipConfig) -> dict[str, str]:
    """Our fused query, key and value layers, and where their three separate ones are."""
    return {
        f"{block}.attention.query_key_value": f"{layer}.self_attn" for block, layer in _blocks(config).items()
    }


def _blocks(config: ClipConfig) -> dict[str, str]:
    towers = (("image", "vision_model", config.image.depth), ("text", "text_model", config.text.depth))
    return {
        f"{ours}.transformer.blocks.{number}": f"{theirs}.encoder.layers.{number}"
        for ours, theirs, depth in towers
        for number in range(depth)
    }


def bias_or_zeros(weights: Mapping[str, Tensor], weight: str, bias: str) -> Float[Tensor, " out"]:
    """A bias, or zeros where the layer of that weight has none."""
    return weights[bias] if bias in weights else weights[weight].new_zeros(len(weights[weight]))


def grid_table(weights: Mapping[str, Tensor]) -> Float[Tensor, "entries dim"]:
    """A factorized sum as the grid table that it is, R[i] + C[j].

    Resizing is linear and each axis' weights sum to one, so this is the same embedding on every grid.
    """
    row, column = weights["image.position.row"], weights["image.position.column"]
    return (row[:, None] + column[None]).flatten(0, 1)


def size_faults(sizes: Mapping[str, Any]) -> list[str]:
    """What of a config's sizes, by their dotted keys, is no count of at least 1; heads that do not divide."""
    faults = [
        f"{key} is {found}, expected a whole number of at least 1"
        for key, found in sizes.items()
        if type(found) is not int or found < 1
    ]
    for key, heads in sizes.items():
        part, _, name = key.rpartition(".")
        if name == "num_attention_heads" and not faults and sizes[f"{part}.hidden_size"] % heads:
            width = sizes[f"{part}.hidden_size"]
            faults.append(f"{key} is {heads}, expected a number that divides hidden_size, {width}")
    return faults


def _transformer_settings(config: TransformerConfig) -> dict[str, int | float | str]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATION,
    }


def _tower_settings(config: Siglip2VisionConfig | Siglip2TextConfig) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_dim": config.intermediate_size,
        "norm_eps": config.layer_norm_eps,
        "biases": True,
    }


def _shown(setting: str | bool | int) -> str:
    return str(setting).lower() if isinstance(setting, bool) else str(setting)
