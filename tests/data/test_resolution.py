"""Drawn sizes are distributed as asked, and grids keep shape, budget and the rule for extremes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navit_clip.config import build_config
from navit_clip.data.draws import SampleRandom
from navit_clip.data.resize import grid_for
from navit_clip.data.resolution import ResolutionConfig, ResolutionStage
from navit_clip.errors import ConfigError

NAVIT = {"min_side": 64, "max_side": 384}


def sides(number: int = 4000, images_seen: float = 0.0, **settings) -> np.ndarray:
    """Drawn sides in pixels: patches of one pixel make a side of r into r squared of them."""
    config, random = ResolutionConfig(**settings), np.random.default_rng(0)
    return np.array([config.draw_tokens(random, images_seen, 1) ** 0.5 for _ in range(number)])


def test_sides_are_uniform_over_the_range_with_its_ends():
    values, counts = np.unique(sides(min_side=10, max_side=13), return_counts=True)
    assert values.tolist() == [10, 11, 12, 13]
    assert counts.min() > 900


def test_equal_bounds_fix_the_side():
    assert set(sides(9, min_side=96, max_side=96)) == {96}


def test_areas_are_uniform_where_asked():
    drawn = sides(measure="area", **NAVIT)
    assert drawn.min() >= 64
    assert drawn.max() <= 384
    quarters = np.quantile(drawn**2, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quarters, 64**2 + np.array([1, 2, 3]) / 4 * (384**2 - 64**2), rtol=0.05)


@pytest.mark.parametrize(("mean", "expected"), [(0.0, 0.0), (-0.5, -0.1437), (0.5, 0.1437)])
def test_normal_sides_are_cut_off_at_the_ends(mean, expected):
    """The mean of N(m, 1) within [-1, 1] is m + (phi(-1 - m) - phi(1 - m)) / (Phi(1 - m) - Phi(-1 - m))."""
    drawn = sides(distribution="normal", mean=mean, **NAVIT)
    assert drawn.min() >= 64
    assert drawn.max() <= 384
    assert ((drawn - 224) / 160).mean() == pytest.approx(expected, abs=0.03)


def test_stages_move_the_range():
    stages = [ResolutionStage(from_images=n, min_side=s, max_side=s) for n, s in ((10, 200), (30, 300))]
    settings = {"min_side": 64, "max_side": 64, "stages": stages}
    found = [sides(1, images_seen=images, **settings).item() for images in (0.0, 9.9, 10.0, 29.0, 30.0, 1e9)]
    assert found == [64, 64, 200, 200, 300, 300]
    assert ResolutionConfig(**settings).largest(patch_size=100) == 9
    assert ResolutionConfig(**settings).smallest(patch_size=1) == 64**2


def test_numbers_of_patches_are_equally_likely():
    config = ResolutionConfig(kind="patches", patches=[128, 256, 576, 784, 1024])
    drawn = [config.draw_tokens(SampleRandom(0, 0, str(key)), 0.0, 16) for key in range(5000)]
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == config.patches
    assert counts.min() > 900


@pytest.mark.parametrize(
    ("settings", "height", "width", "num_tokens", "grid"),
    [
        ({}, 512, 256, 256, (22, 11)),
        ({}, 32, 64, 256, (11, 22)),
        ({}, 1, 3000, 256, (1, 256)),
        ({"max_grid_side": 16}, 1, 3000, 256, (1, 16)),
        ({"max_grid_side": 16}, 3000, 1, 256, (16, 1)),
        ({"max_grid_side": 16}, 512, 256, 256, (16, 11)),
        ({"upscale": False}, 32, 64, 256, (2, 4)),
        ({"upscale": False}, 1, 3000, 256, (1, 188)),
        ({"upscale": False}, 33, 17, 256, (3, 2)),
        ({"upscale": False}, 512, 256, 256, (22, 11)),
        ({"kind": "native"}, 32, 64, 256, (2, 4)),
        ({"kind": "native"}, 1, 1, 256, (1, 1)),
        ({"kind": "native"}, 2000, 1000, 256, (22, 11)),
        ({"shape": "square"}, 512, 256, 256, (16, 16)),
        ({"shape": "square"}, 1, 3000, 200, (14, 14)),
        ({"shape": "square", "upscale": False}, 48, 48, 200, (3, 3)),
        ({"shape": "square", "upscale": False}, 1, 3000, 200, (1, 1)),
        ({"shape": "square", "kind": "native"}, 40, 3000, 200, (3, 3)),
    ],
)
def test_grids_by_hand(settings, height, width, num_tokens, grid):
    assert ResolutionConfig(**settings).grid(height, width, 16, num_tokens) == grid


@given(
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.sampled_from([8, 14, 16]),
    st.integers(1, 1024),
    st.sampled_from(["drawn", "native"]),
    st.sampled_from(["own", "square"]),
    st.booleans(),
    st.sampled_from([0, 1, 16]),
)
def test_every_grid_keeps_to_its_budget(height, width, patch, num_tokens, kind, shape, upscale, longest):
    config = ResolutionConfig(kind=kind, shape=shape, upscale=upscale, max_grid_side=longest)
    rows, columns = config.grid(height, width, patch, num_tokens)
    assert 1 <= rows * columns <= num_tokens
    assert not longest or max(rows, columns) <= longest
    assert max(rows, columns) <= config.longest_side(patch) or num_tokens > config.largest(patch)
    if kind == "native" or not upscale:
        assert rows * patch < height + patch
        assert columns * patch < width + patch
    if shape == "square":
        assert rows == columns
    elif kind == "drawn" and upscale and not longest:
        assert (rows, columns) == grid_for(height, width, patch, num_tokens)


@pytest.mark.parametrize(
    ("settings", "smallest", "largest", "longest"),
    [
        ({"max_side": 160}, 16, 100, 100),
        ({"max_side": 512, "max_grid_side": 16}, 16, 256, 16),
        ({"max_side": 160, "max_grid_side": 32}, 16, 100, 32),
        ({"min_side": 100, "max_side": 100, "shape": "square"}, 36, 36, 6),
        ({"kind": "native", "max_side": 160}, 1, 100, 100),
        ({"kind": "patches", "patches": [9, 4], "shape": "square"}, 4, 9, 3),
    ],
)
def test_what_images_may_have(settings, smallest, largest, longest):
    config = ResolutionConfig(**settings)
    found = config.smallest(16), config.largest(16), config.longest_side(16)
    assert found == (smallest, largest, longest)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_side": 0}, "min_side: expected at least one pixel"),
        ({"min_side": -5, "max_side": 4}, "min_side: expected at least one pixel"),
        ({"min_side": 128, "max_side": 64}, "max_side: expected at least min_side, which is 128, found 64"),
        ({"kind": "native", "max_side": 0}, "max_side: expected at least"),
        ({"distribution": "normal", "mean": 1.5}, r"mean: expected in \[-1, 1\]"),
        ({"distribution": "normal", "deviation": 0.0}, r"deviation: expected in \[0.01, 10\]"),
        ({"mean": 0.5}, "distribution: mean and deviation are of the normal one"),
        ({"max_grid_side": -1}, "max_grid_side: expected at least 0"),
        ({"kind": "patches"}, "patches: expected one or more numbers for kind patches"),
        ({"kind": "patches", "patches": [0]}, "patches: expected different numbers of at least 1"),
        ({"kind": "patches", "patches": [128, 128]}, "patches: expected different numbers"),
        ({"distribution": "normal", "deviation": 1e-17}, r"deviation: expected in \[0.01, 10\]"),
        ({"patches": [256]}, r"patches: .* found \[256\] for drawn"),
        ({"kind": "native", "min_side": 32}, "min_side: only kind drawn has it, found kind native"),
        ({"kind": "patches", "patches": [9], "max_side": 9}, "max_side: only kind drawn or native has it"),
        ({"same_in_batch": True}, "same_in_batch: only kind patches has it"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        ResolutionConfig(**settings)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([0], r"stages\[0\]\.from_images: expected at least 1, found 0"),
        ([9, 9], r"stages: expected each from_images to be above the last, found \[9, 9\]"),
        ([9, 5], "stages: expected each from_images to be above the last"),
    ],
)
def test_impossible_stages_are_named(starts, message):
    stages = [{"from_images": start, "min_side": 8, "max_side": 9} for start in starts]
    with pytest.raises(ConfigError, match=f"^here: {message}"):
        build_config(ResolutionConfig, {"stages": stages}, where="here")
