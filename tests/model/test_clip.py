"""The towers: packed equals one at a time, outputs and all gradients, for every kind of tower."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from navit_clip.batch import Batch
from navit_clip.errors import ConfigError, DataError
from navit_clip.model import (
    ClipConfig,
    ImageTowerConfig,
    PositionConfig,
    TextTowerConfig,
    TwoTowers,
)
from tests.packs import noise_captions, noise_images, pack, pack_captions

PATCH_SIZE = 4
VOCAB_SIZE = 50
RNG = np.random.default_rng(1)
GRIDS = [(1, 1), (1, 64), (64, 1), (7, 7), (7, 7), (5, 3)] + [
    (int(rows), int(columns)) for rows, columns in RNG.integers(1, 13, (100, 2))
]
SIZE = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}
IMAGE = ImageTowerConfig(**SIZE, patch_size=PATCH_SIZE)
TEXT = TextTowerConfig(**SIZE, vocab_size=VOCAB_SIZE)
CONFIGS = {
    "navit": ClipConfig(image=IMAGE, text=TEXT),
    "absolute with qk-norm": ClipConfig(
        image=replace(IMAGE, qk_norm=True, position=PositionConfig(coordinates="absolute", table_side=64)),
        text=replace(TEXT, qk_norm=True),
    ),
    "siglip2 with biases": ClipConfig(
        image=replace(IMAGE, biases=True, position=PositionConfig(kind="grid", table_side=7)),
        text=replace(TEXT, biases=True),
    ),
    "rotary with qk-norm": ClipConfig(
        image=replace(
            IMAGE, qk_norm=True, position=PositionConfig(kind="rope", coordinates="fractional_longer")
        ),
        text=TEXT,
    ),
    "map text": ClipConfig(image=IMAGE, text=replace(TEXT, pooling="map")),
    "clip's causal text": ClipConfig(image=IMAGE, text=replace(TEXT, causal=True, alignment="left")),
    "checkpointed": ClipConfig(
        image=replace(IMAGE, checkpoint_blocks=True, position=PositionConfig(kind="rope")),
        text=replace(TEXT, checkpoint_blocks=True),
    ),
}


def make_model(config: ClipConfig) -> TwoTowers:
    torch.manual_seed(0)
    model = TwoTowers(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros would hide a bias that is not used
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: TwoTowers, output: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(7))
    model.zero_grad()
    (output * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_packed_equals_single(model, encode, packed, singles):
    together = encode(packed)
    one_by_one = torch.cat([encode(single) for single in singles])
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=0)
    expected = gradients(model, one_by_one)
    for name, gradient in gradients(model, encode(packed)).items():
        error = (gradient - expected[name]).norm() / expected[name].norm().clamp(min=1e-3)
        assert error < 1e-5, f"{name}: {error}"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_packed_images_equal_one_at_a_time(config):
    model = make_model(config)
    images = noise_images(GRIDS, PATCH_SIZE, keep=0.7)
    assert_packed_equals_single(model, model.encode_images, pack(images), [pack([i]) for i in images])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_packed_captions_equal_one_at_a_time(config):
    model = make_model(config)
    captions = noise_captions([1, 64, 9, 9, 17, 2, 9, 30], VOCAB_SIZE)
    packed, singles = pack_captions(captions), [pack_captions([caption]) for caption in captions]
    assert_packed_equals_single(model, model.encode_captions, packed, singles)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_changed_image_changes_no_bit_of_another(config):
    model = make_model(config)
    images = noise_images([(3, 4), (7, 7), (2, 9), (7, 7), (1, 1)], PATCH_SIZE)
    before = model.encode_images(pack(images))
    images[1].pixels[:] = 255 - images[1].pixels
    after = model.encode_images(pack(images))
    assert not torch.equal(before[1], after[1])
    others = [0, 2, 3, 4]
    assert torch.equal(before[others], after[others])


def test_the_order_of_kept_patches_does_not_matter_but_their_position_does():
    model = make_model(CONFIGS["navit"])
    image = noise_images([(4, 6)], PATCH_SIZE, keep=0.5)[0]
    shuffled = np.random.default_rng(0).permutation(len(image))
    reordered = replace(image, pixels=image.pixels[shuffled], position=image.position[shuffled])
    moved = replace(image, position=image.position[::-1].copy())
    original, same, other = model.encode_images(pack([image, reordered, moved]))
    torch.testing.assert_close(original, same, atol=1e-6, rtol=0)
    assert (original - other).abs().max() > 1e-3


def test_embeddings_are_unit_vectors_with_scale_and_bias():
    model = make_model(replace(CONFIGS["navit"], initial_logit_scale=10.0, initial_logit_bias=-10.0))
    torch.nn.init.constant_(model.logit_bias, -10.0)
    images, captions = noise_images([(2, 3), (4, 4)], PATCH_SIZE), noise_captions([3, 5], VOCAB_SIZE)
    embeddings = model(Batch(pack(images), pack_captions(captions), keys=("a", "b")))
    torch.testing.assert_close(embeddings.image.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(embeddings.text.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(embeddings.logit_scale, torch.tensor([10.0]))
    torch.testing.assert_close(embeddings.logit_bias, torch.tensor([-10.0]))


def test_a_caption_longer_than_the_context_is_refused():
    model = make_model(CONFIGS["navit"])
    with pytest.raises(DataError, match="up to 64 tokens, found one of 65"):
        model.encode_captions(pack_captions(noise_captions([65], VOCAB_SIZE)))


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"^num_heads: expected a divisor of width, which is 32, found 3"):
        ImageTowerConfig(width=32, num_heads=3)


def test_compute_dtype_is_what_attention_runs_in_and_leaves_the_weights():
    model = TwoTowers(CONFIGS["navit"])
    images = pack(noise_images([(2, 3), (1, 1)], PATCH_SIZE))
    captions = pack_captions(noise_captions([3, 2], VOCAB_SIZE))
    exact = model.encode_images(images)
    attended = []
    for tower in (model.image, model.text):
        layer = tower.transformer.blocks[0].attention.output
        layer.register_forward_pre_hook(lambda _, inputs: attended.append(inputs[0].dtype))
    model.compute_dtype = torch.bfloat16
    found = model.encode_images(images), model.encode_captions(captions)
    assert attended == [torch.bfloat16] * 2
    for vectors in found:
        assert vectors.dtype == torch.float32
        assert (vectors.norm(dim=-1) - 1).abs().max() < 1e-6
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0 < (found[0] - exact).norm() / exact.norm() < 1e-2
