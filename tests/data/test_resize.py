"""Sizes and pixels equal those of transformers' SigLIP 2 processor."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Siglip2ImageProcessor
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from navit_clip.data.augmentation import View
from navit_clip.data.patches import cut_patches, image_patches
from navit_clip.data.resize import grid_for, resize, tokens_of_side
from navit_clip.data.samples import read_samples
from tests.data_builders import noise_picture, striped_picture

SIZES = [(1, 1), (1, 3000), (3000, 1), (7, 5), (224, 224), (375, 500), (500, 333), (17, 1023), (640, 31)]


@pytest.mark.parametrize(
    ("height", "width", "num_tokens", "grid"),
    [
        (256, 256, 256, (16, 16)),
        (512, 256, 256, (22, 11)),
        (256, 256, 1, (1, 1)),
        (1, 3000, 256, (1, 256)),
        (3000, 1, 256, (256, 1)),
        (1, 1, 256, (7, 7)),
        (32, 32, 256, (16, 16)),
    ],
)
def test_grids_by_hand(height, width, num_tokens, grid):
    assert grid_for(height, width, 16, num_tokens) == grid


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([8, 14, 16, 32]), st.integers(1, 1024)
)  # fmt: skip
def test_grids_equal_those_of_transformers(height, width, patch_size, num_tokens):
    rows, columns = grid_for(height, width, patch_size, num_tokens)
    assert 1 <= rows * columns <= num_tokens
    theirs = get_image_size_for_max_num_patches(height, width, patch_size, num_tokens)
    assert (rows * patch_size, columns * patch_size) == theirs


@pytest.mark.parametrize(
    ("side", "patch_size", "num_tokens"),
    [(256, 16, 256), (64, 16, 16), (100, 16, 39), (1, 16, 1)],
)
def test_a_side_is_an_area_in_patches(side, patch_size, num_tokens):
    assert tokens_of_side(side, patch_size) == num_tokens


def theirs(image, num_tokens):
    """Pixels and grid of transformers' processor, as bytes."""
    processor = Siglip2ImageProcessor(do_rescale=False, do_normalize=False)
    made = processor(
        torch.from_numpy(image).permute(2, 0, 1), max_num_patches=num_tokens, return_tensors="pt"
    )
    rows, columns = made["spatial_shapes"][0].tolist()
    return made["pixel_values"][0][: rows * columns].numpy(), (rows, columns)


def check_equal_to_theirs(image, num_tokens):
    ours = cut_patches(image, 16, num_tokens)
    pixels, grid = theirs(image, num_tokens)
    assert ours.grid == grid
    np.testing.assert_array_equal(ours.pixels, pixels)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("num_tokens", [1, 49, 256])
def test_pixels_equal_those_of_transformers(height, width, num_tokens):
    check_equal_to_theirs(noise_picture(height, width), num_tokens)
    check_equal_to_theirs(striped_picture(height, width), num_tokens)


@pytest.mark.real_data
@pytest.mark.parametrize("shard", ["imagenet1k-sample-native", "flags"])
def test_pixels_of_real_images_equal_those_of_transformers(real_shards, shard):
    from navit_clip.data.images import decode_image

    for number, sample in enumerate(read_samples([str(real_shards / f"{shard}.tar")])):
        if number % 5 == 0:
            image = decode_image(sample.image)
            check_equal_to_theirs(image, 64 + number)
            ours = image_patches(sample.image, 16, 64 + number)
            np.testing.assert_array_equal(ours.pixels, theirs(image, 64 + number)[0])


def test_an_image_of_the_right_size_stays_as_it_is():
    image = noise_picture(32, 48)
    np.testing.assert_array_equal(resize(image, 32, 48), image)


def test_a_mirrored_crop_one_pixel_wide_is_resized_as_any():
    """Its strides are those of no picture that torch knows, for numpy keeps what an axis of one had."""
    image = noise_picture(9, 1)
    mirrored = View(1.0, 0.0, 0.0, mirrored=True).of(image)
    np.testing.assert_array_equal(resize(mirrored, 16, 32), resize(image, 16, 32))


def test_reducing_is_antialiased():
    """Stripes much finer than the output's pixels average to gray rather than alias."""
    reduced = resize(striped_picture(256, 256, period=4), 16, 16)
    assert np.abs(reduced.astype(int) - 127).max() <= 5
