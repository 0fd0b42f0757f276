"""Our towers against transformers' Siglip2 on random configs and weights, both ways."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from transformers import Siglip2Config, Siglip2Model
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from navit_clip.batch import PackedImages
from navit_clip.errors import CheckpointError
from navit_clip.huggingface.siglip2 import (
    clip_config,
    clip_weights,
    inexpressible,
    siglip2_config,
    siglip2_weights,
)
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from navit_clip.tokenizer import load_tokenizer, train_tokenizer
from tests.packs import noise_captions, noise_images, pack, pack_captions

GRIDS = [(1, 1), (1, 64), (64, 1), (5, 1), (7, 7), (11, 22), (16, 16), (31, 9), (40, 40)]
CAPTION_LENGTHS = [1, 2, 7, 31, 63, 64]


@pytest.fixture(autouse=True)
def right_in_one_column(monkeypatch):
    """transformers' own positions, but in images one column wide, where older versions are wrong on a CPU.

    torch's resize with antialiasing, which they are made by, repeats the first row there. The truth is that
    of the image lying, on the transposed table.
    """
    theirs = Siglip2VisionEmbeddings.resize_positional_embeddings

    def resize(table, spatial_shapes, max_length):
        ((height, width),) = spatial_shapes.tolist()
        if width > 1 or height == 1:
            return theirs(table, spatial_shapes, max_length)
        lying = table.permute(2, 1, 0)[None]
        resized = F.interpolate(lying, size=(1, height), mode="bilinear", antialias=True)
        return resized[0, :, 0].T[None]

    monkeypatch.setattr(Siglip2VisionEmbeddings, "resize_positional_embeddings", staticmethod(resize))


def random_tower(draw: random.Random) -> dict:
    heads = draw.choice([1, 2, 3])
    return {
        "hidden_size": heads * draw.choice([8, 16]),
        "num_attention_heads": heads,
        "num_hidden_layers": draw.choice([1, 2, 3]),
        "intermediate_size": draw.choice([17, 48]),
        "layer_norm_eps": draw.choice([1e-6, 1e-5]),
    }


def random_siglip2(seed: int) -> Siglip2Model:
    """A small model of random shape; no weight is left at a zero or one that would hide a mistake."""
    draw = random.Random(seed)
    vision = {
        **random_tower(draw),
        "patch_size": draw.choice([2, 4]),
        "num_patches": draw.choice([1, 9, 25, 256]),
    }
    text = {**random_tower(draw), "vocab_size": 60, "projection_size": vision["hidden_size"]}
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    model = Siglip2Model(Siglip2Config(vision_config=vision, text_config={**text, **tokens})).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def imported(model: Siglip2Model) -> TwoTowers:
    config = clip_config(model.config)
    ours = TwoTowers(config).eval()
    ours.load_state_dict(clip_weights(model.state_dict(), config))
    return ours


def theirs_of_images(model: Siglip2Model, images: PackedImages) -> torch.Tensor:
    """Image by image, without padding, normalised."""
    parts = images.patches.float().div(127.5).sub(1).split(images.offsets.diff().tolist())
    pooled = [
        model.vision_model(pixels[None], torch.ones(1, len(pixels)), grid[None].long()).pooler_output
        for pixels, grid in zip(parts, images.grid, strict=True)
    ]
    return F.normalize(torch.cat(pooled), dim=-1)


def theirs_of_captions(model: Siglip2Model, captions: list[list[int]]) -> torch.Tensor:
    """Padded on the left to the context length, with the mask, as their tokenizer does; normalised."""
    length = model.config.text_config.max_position_embeddings
    ids = torch.tensor([[0] * (length - len(caption)) + caption for caption in captions])
    mask = torch.tensor([[0] * (length - len(caption)) + [1] * len(caption) for caption in captions])
    return F.normalize(model.text_model(ids, mask).pooler_output, dim=-1)


@pytest.mark.parametrize("seed", range(10))
@torch.no_grad()
def test_towers_equal_siglip2(seed):
    model = random_siglip2(seed)
    ours = imported(model)
    images = pack(noise_images(GRIDS, ours.config.image.patch_size))
    torch.testing.assert_close(ours.encode_images(images), theirs_of_images(model, images), atol=1e-5, rtol=0)
    captions = noise_captions(CAPTION_LENGTHS, 60, seed)
    ours_of_captions = ours.encode_captions(pack_captions(captions))
    torch.testing.assert_close(ours_of_captions, theirs_of_captions(model, captions), atol=1e-5, rtol=0)
    assert torch.equal(ours.logit_scale, model.logit_scale)
    assert torch.equal(ours.logit_bias, model.logit_bias)


@pytest.mark.parametrize("seed", range(10))
def test_gradients_equal_siglip2(seed):
    """Of every weight, for one pack of all grids; theirs image by image, mapped as the weights are."""
    model = random_siglip2(seed)
    ours = imported(model)
    images = noise_images(GRIDS, ours.config.image.patch_size)
    captions = noise_captions(CAPTION_LENGTHS, 60, seed)
    target = torch.randn(len(images) + len(captions), ours.embedding_dim)
    vectors = [ours.encode_images(pack(images)), ours.encode_captions(pack_captions(captions))]
    (torch.cat(vectors) * target).sum().backward()
    vectors = [theirs_of_images(model, pack(images)), theirs_of_captions(model, captions)]
    (torch.cat(vectors) * target).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    scalars = {name: torch.zeros(1) for name in ("logit_scale", "logit_bias")}
    expected = clip_weights({**gradients, **scalars}, ours.config)
    for name, weight in ours.named_parameters():
        if weight.grad is not None:
            difference = (weight.grad - expected[name]).norm() / expected[name].norm()
            assert difference < 1e-5, name


def small_config(position: str = "learned", biases: bool = False, **text) -> ClipConfig:
    size = {"depth": 2, "num_heads": 2, "mlp_dim": 40, "biases": biases}
    table = PositionConfig(kind=position, table_side=5)  # type: ignore[arg-type]
    return ClipConfig(
        image=ImageTowerConfig(**size, width=16, patch_size=4, position=table),
        text=TextTowerConfig(**size, width=24, vocab_size=600, **text),
    )


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("position", ["learned", "grid"])
@torch.no_grad()
def test_a_model_leaves_as_siglip2_and_comes_back(position, biases):
    torch.manual_seed(0)
    config = small_config(position, biases)
    ours = TwoTowers(config).eval()
    for parameter in ours.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    model = Siglip2Model(siglip2_config(config)).eval()
    model.load_state_dict(siglip2_weights(ours.state_dict(), config))
    images = pack(noise_images(GRIDS, patch_size=4))
    captions = noise_captions(CAPTION_LENGTHS, 600)
    of_images, of_captions = ours.encode_images(images), ours.encode_captions(pack_captions(captions))
    torch.testing.assert_close(theirs_of_images(model, images), of_images, atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs_of_captions(model, captions), of_captions, atol=1e-5, rtol=0)
    back = imported(model)
    torch.testing.assert_close(back.encode_images(images), of_images, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.encode_captions(pack_captions(captions)), of_captions, atol=1e-5, rtol=0)


def test_everything_that_siglip2_lacks_is_listed():
    config = ClipConfig(
        image=ImageTowerConfig(
            qk_norm=True,
            position=PositionConfig(kind="sinusoidal", coordinates="absolute", combination="stack"),
        ),
        text=TextTowerConfig(qk_norm=True, causal=True, pooling="map", alignment="left", context_length=77),
    )
    faults = inexpressible(config, load_tokenizer("open_clip"))
    assert [fault.split(" is ")[0] for fault in faults] == [
        "model.image.qk_norm",
        "model.image.position.kind",
        "model.image.position.coordinates",
        "model.image.position.combination",
        "model.text.qk_norm",
        "model.text.causal",
        "model.text.pooling",
        "model.text.alignment",
        "model.text.context_length",
        "tokenizer",
    ]
    assert faults[1:4] == [
        "model.image.position.kind is sinusoidal; train with learned or grid",
        "model.image.position.coordinates is absolute; train with fractional",
        "model.image.position.combination is stack; train with sum",
    ]
    assert faults[4] == "model.text.qk_norm is true; train with false"
    assert inexpressible(config, load_tokenizer("open_clip"), tower="image") == faults[:4]
    assert inexpressible(config, load_tokenizer("open_clip"), tower="text") == faults[4:]


def test_nothing_is_lacking_in_the_default_model():
    assert inexpressible(ClipConfig(), train_tokenizer(["a dog"], vocab_size=512)) == []


@pytest.mark.parametrize(
    ("tower", "setting"),
    [
        ("vision_config", {"vision_use_head": False}),
        ("vision_config", {"hidden_act": "relu"}),
        ("vision_config", {"num_patches": 200}),
        ("vision_config", {"attention_dropout": 0.1}),
        ("text_config", {"projection_size": 32}),
    ],
)
def test_siglip2_models_that_our_towers_lack_are_refused(tower, setting):
    ((name, value),) = setting.items()
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    settings = {"text_config": tokens, tower: {**(tokens if tower == "text_config" else {}), **setting}}
    with pytest.raises(CheckpointError, match=rf"{tower}\.{name} is {value}"):
        clip_config(Siglip2Config(**settings))
