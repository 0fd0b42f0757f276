"""Model folders as others write them, small: transformers' SigLIP and SigLIP 2, and open_clip's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg, _create_naflexvit
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from torch import nn
from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

from navit_clip.tokenizer import train_tokenizer

CAPTIONS = [f"{number} {animal}s in a field" for number in range(20) for animal in ("dog", "cat")]
VOCABULARY = 600
CONTEXT_LENGTH = 64
TOWER = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 40}
TEXT = {**TOWER, "hidden_size": 24, "projection_size": 16, "vocab_size": VOCABULARY}
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
TRUNK = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.5}
FLEXIBLE = {"pos_embed_grid_size": (4, 4), "pos_embed_interp_mode": "bilinear", "act_layer": "gelu_tanh"}
OPEN_CLIP_TEXT = {
    "context_length": CONTEXT_LENGTH,
    "vocab_size": VOCABULARY,
    "hf_tokenizer_name": "google/whatever",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 24,
    "heads": 2,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}


@register_model
def small_siglip_tower(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A fixed-resolution tower as timm has SigLIP's, on 24 pixels."""
    settings = {"img_size": 24, "patch_size": 4, "class_token": False, "act_layer": "gelu_tanh"}
    return _create_vision_transformer("small_siglip_tower", **{**TRUNK, **settings, **kwargs})


@register_model
def small_exact_gelu_tower(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The same with timm's default activation, which its SigLIP base models have."""
    return small_siglip_tower(**kwargs, act_layer=nn.GELU)


@register_model
def small_odd_tower(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """One with everything that our tower lacks."""
    odd = {"class_token": True, "pre_norm": True, "init_values": 0.1, "act_layer": nn.ReLU}
    return small_siglip_tower(**kwargs, **odd)


@register_model
def small_naflex_tower(pretrained: bool = False, **kwargs: Any) -> NaFlexVit:
    """A flexible tower as timm has SigLIP 2's, on a table of 4 x 4."""
    config = NaFlexVitCfg(**TRUNK, **FLEXIBLE, patch_size=4)
    return _create_naflexvit("small_naflex_tower", cfg=config, img_size=16, **kwargs)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """No weight is left at a zero or one that would hide a mistake."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def siglip2_folder(folder: Path, **save: Any) -> Siglip2Model:
    """SigLIP 2 NaFlex as Google's folders are: right padding, no mask, a Gemma tokenizer."""
    vision = {**TOWER, "patch_size": 4, "num_patches": 25}
    config = Siglip2Config(vision_config=vision, text_config={**TEXT, **TOKEN_IDS})
    model = shaken(Siglip2Model(config))
    model.save_pretrained(folder, **save)
    gemma_tokenizer(folder)
    return model


def siglip_folder(folder: Path, image_size: int = 24) -> SiglipModel:
    """Fixed-resolution SigLIP 2, which transformers calls siglip."""
    vision = {**TOWER, "patch_size": 4, "image_size": image_size}
    config = SiglipConfig(vision_config=vision, text_config={**TEXT, **TOKEN_IDS})
    model = shaken(SiglipModel(config))
    model.save_pretrained(folder)
    gemma_tokenizer(folder)
    return model


def open_clip_folder(folder: Path, trunk: str = "small_siglip_tower", **text: Any) -> CustomTextCLIP:
    """A SigLIP in open_clip's format."""
    vision = {"image_size": 24, "timm_model_name": trunk, "timm_pool": "map", "timm_proj": "none"}
    if "naflex" in trunk:
        vision["image_size"] = 16
    config = {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision,
        "text_cfg": {**OPEN_CLIP_TEXT, **text},
    }
    model = shaken(CustomTextCLIP(**{name: value for name, value in config.items() if name != "custom_text"}))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    settings = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    gemma_tokenizer(folder)
    return model


def gemma_tokenizer(folder: Path) -> None:
    """A tokenizer that its files say to be Gemma's: not lower-cased by itself, right padding, no mask."""
    train_tokenizer(CAPTIONS, vocab_size=VOCABULARY).save(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    unused = max(tokenizer["model"]["vocab"].values()) + 1
    tokenizer["model"]["vocab"]["<unused0>"] = unused
    added = {**tokenizer["added_tokens"][0], "id": unused, "content": "<unused0>", "special": False}
    tokenizer["added_tokens"].append(added)
    tokenizer["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "do_lower_case": True,
        "padding_side": "right",
        "model_max_length": CONTEXT_LENGTH,
        "model_input_names": ["input_ids"],
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


assert timm.is_model("small_siglip_tower")
