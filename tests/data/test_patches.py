"""Patches lie where they should, in the order that weights expect."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navit_clip.data.patches import cut_grid, cut_patches, image_patches, positions_of
from navit_clip.data.resize import resize
from tests.data_builders import encode_image, noise_picture


def test_a_patch_is_row_column_channel():
    image = noise_picture(32, 48)
    patches = cut_patches(image, 16, 6)
    assert patches.grid == (2, 3)
    assert patches.position.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    for pixels, (row, column) in zip(patches.pixels, patches.position, strict=True):
        tile = image[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        np.testing.assert_array_equal(pixels, tile.reshape(-1))


def test_positions_that_images_share_are_read_only():
    first, second = (positions_of((2, 3), np.arange(6)) for _ in range(2))
    assert first is second
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 9


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.sampled_from([1, 2, 7, 16]))
def test_patches_put_together_are_the_resized_image(height, width, num_tokens, patch_size):
    image = noise_picture(height, width)
    patches = cut_patches(image, patch_size, num_tokens)
    rows, columns = patches.grid
    tiles = patches.pixels.reshape(rows, columns, patch_size, patch_size, 3).swapaxes(1, 2)
    whole = tiles.reshape(rows * patch_size, columns * patch_size, 3)
    np.testing.assert_array_equal(whole, resize(image, rows * patch_size, columns * patch_size))


def test_kept_patches_are_those_of_the_whole_cut():
    image = noise_picture(90, 60)
    kept = np.array([0, 3, 4, 11])
    every = cut_grid(image, 16, (4, 3))
    some = cut_grid(image, 16, (4, 3), kept)
    assert len(some) == 4
    assert some.grid == every.grid
    np.testing.assert_array_equal(some.pixels, every.pixels[kept])
    np.testing.assert_array_equal(some.position, every.position[kept])


def test_an_encoded_image_is_cut_in_full():
    image = noise_picture(50, 70)
    ours, cut = image_patches(encode_image(image), 16, 30), cut_patches(image, 16, 30)
    np.testing.assert_array_equal(ours.pixels, cut.pixels)
    assert ours.grid == cut.grid
