"""Crops and mirroring: what is drawn, and what is cut out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navit_clip.data.augmentation import AugmentationConfig, View
from navit_clip.errors import ConfigError
from tests.data_builders import noise_picture


def test_nothing_is_drawn_and_nothing_happens_by_default():
    random = np.random.default_rng(0)
    view = AugmentationConfig().draw_view(random)
    assert random.random() == np.random.default_rng(0).random()
    picture = noise_picture(7, 9)
    assert np.array_equal(view.of(picture), picture)


def test_areas_are_uniform_and_half_are_mirrored():
    config = AugmentationConfig(min_area=0.2, mirror=0.5)
    random = np.random.default_rng(0)
    views = [config.draw_view(random) for _ in range(4000)]
    areas = np.array([view.scale**2 for view in views])
    assert 0.2 <= areas.min() < 0.21
    assert 0.99 < areas.max() <= 1
    assert areas.mean() == pytest.approx(0.6, abs=0.01)
    assert np.mean([view.mirrored for view in views]) == pytest.approx(0.5, abs=0.03)


def test_a_view_is_cut_out_where_it_says():
    picture = noise_picture(10, 20)
    crop = View(scale=0.5, top=0.99, left=0.0, mirrored=True).of(picture)
    assert np.array_equal(crop, picture[5:, :10][:, ::-1])
    assert crop.flags.c_contiguous


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.floats(0.01, 1),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_every_view_lies_within_its_picture(height, width, scale, top, left):
    view = View(scale, top, left, mirrored=False)
    crop = view.of(np.zeros((height, width, 3), dtype=np.uint8))
    assert crop.shape == (*view.size(height, width), 3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_area": 0.0}, r"min_area: expected a share in \(0, 1\], found 0\.0"),
        ({"mirror": 1.5}, r"mirror: expected a chance in \[0, 1\], found 1\.5"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        AugmentationConfig(**setting)
