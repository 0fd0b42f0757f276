"""Counted operations equal those that torch's own counter sees the towers do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from navit_clip.batch import lengths_of
from navit_clip.model import ImageTower, ImageTowerConfig, PositionConfig, TextTower, TextTowerConfig
from navit_clip.model.flops import image_tower_flops, text_tower_flops
from navit_clip.model.initialization import initialize
from tests.packs import noise_captions, noise_images, pack, pack_captions

SIZE = {"width": 32, "depth": 3, "num_heads": 2, "mlp_dim": 48}
# Absolute positions are looked up: nothing but what is counted does a matrix product.
IMAGE = ImageTowerConfig(**SIZE, patch_size=4, position=PositionConfig(coordinates="absolute", table_side=64))
TEXT = TextTowerConfig(**SIZE, vocab_size=50)
GRIDS = [(7, 9), (7, 9), (3, 5), (1, 1), (2, 30)]


def seen_by_torch(tower: torch.nn.Module, pack, backward: bool) -> int:
    initialize(tower)
    # The counter knows plain matrix products: attention's are, where it runs on the math backend.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = tower(pack)
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


def probe_flops(config, backward: bool) -> int:
    """Of pooling's query, which the probe alone decides: once a pack, and left out of the count."""
    once = 2 * config.width**2 + 2 * config.width**2  # its projection, and the product with the keys
    return once * (3 if backward else 1)


@pytest.mark.parametrize("backward", [False, True])
def test_the_image_tower_does_what_is_counted(backward):
    images = pack(noise_images(GRIDS, patch_size=4, keep=0.7))
    lengths = torch.tensor(lengths_of(images.offsets))
    expected = image_tower_flops(IMAGE, lengths, backward) + probe_flops(IMAGE, backward)
    assert seen_by_torch(ImageTower(IMAGE), images, backward) == expected


@pytest.mark.parametrize("pooling", ["last", "map"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_text_tower_does_what_is_counted(pooling, backward):
    config = replace(TEXT, pooling=pooling)
    lengths = torch.tensor([4, 9, 9, 1])
    captions = pack_captions(noise_captions(lengths.tolist(), vocab_size=50))
    expected = text_tower_flops(config, 24, lengths, backward)
    expected += probe_flops(config, backward) if pooling == "map" else 0
    assert seen_by_torch(TextTower(config, embedding_dim=24), captions, backward) == expected


def test_a_causal_token_attends_to_what_came_before():
    lengths = torch.tensor([5])
    full, causal = (text_tower_flops(replace(TEXT, causal=causal), 24, lengths) for causal in (False, True))
    assert full - causal == 4 * TEXT.width * TEXT.depth * (5 * 5 - 15)
