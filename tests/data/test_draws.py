"""What is drawn depends on seed, epoch and key alone, and lies where the config says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navit_clip.data.draws import (
    DropConfig,
    ResolutionConfig,
    check_template,
    draw_text,
    fill_template,
    sample_random,
    seed_of,
)
from navit_clip.errors import ConfigError


def test_a_seed_is_the_same_everywhere_and_for_ever():
    assert seed_of("sample", 0, 1, "shard/key") == 0x66BD71029F25377250309681869247A2


def test_words_do_not_run_together():
    assert len({seed_of("a", "b"), seed_of("ab"), seed_of("b", "a"), seed_of("a", "b", "")}) == 4


def test_seed_epoch_and_key_each_matter():
    draws = {
        sample_random(*words).integers(2**62)
        for words in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    }
    assert len(draws) == 4
    assert sample_random(0, 0, "a").integers(2**62) in draws


def test_sides_are_uniform_over_the_range_with_its_ends():
    config = ResolutionConfig(min_side=10, max_side=13)
    sides = [config.draw_side(sample_random(0, 0, str(key))) for key in range(4000)]
    values, counts = np.unique(sides, return_counts=True)
    assert values.tolist() == [10, 11, 12, 13]
    assert counts.min() > 900


def test_equal_bounds_fix_the_side():
    assert ResolutionConfig(min_side=96, max_side=96).draw_side(sample_random(0, 0, "a")) == 96


@given(st.integers(1, 400), st.floats(0, 0.999), st.integers(0, 99))
def test_the_kept_patches_are_as_many_as_the_rate_says(num_patches, rate, key):
    config = DropConfig(rate=rate)
    kept = config.draw_kept(num_patches, sample_random(0, 0, str(key)))
    assert len(kept) == config.num_kept(num_patches) == max(1, round(num_patches * (1 - rate)))
    assert (np.diff(kept) > 0).all()
    assert kept[0] >= 0
    assert kept[-1] < num_patches


def test_every_patch_is_kept_equally_often():
    config = DropConfig(rate=0.5)
    kept = [config.draw_kept(10, sample_random(0, 0, str(key))) for key in range(2000)]
    counts = np.bincount(np.concatenate(kept), minlength=10)
    assert np.abs(counts - 1000).max() < 120


def test_captions_and_templates_are_drawn_independently():
    captions, templates = ("a", "b"), ("{}", "a photo of {}")
    drawn = [draw_text(captions, templates, sample_random(0, 0, str(key))) for key in range(400)]
    assert {(caption, text) for caption, text in drawn} == {
        (caption, fill_template(template, caption)) for caption in captions for template in templates
    }


def test_a_caption_goes_into_its_template_as_it_is():
    assert fill_template("a photo of {}.", "{x} {}") == "a photo of {x} {}."


@pytest.mark.parametrize("template", ["", "a photo", "{} {}", "{0}"])
def test_a_template_has_one_place(template):
    with pytest.raises(ConfigError, match="expected one"):
        check_template(template)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ResolutionConfig(min_side=0), "min_side"),
        (lambda: ResolutionConfig(min_side=-5, max_side=4), "min_side"),
        (lambda: ResolutionConfig(min_side=128, max_side=64), "max_side"),
        (lambda: DropConfig(rate=1.0), "rate"),
        (lambda: DropConfig(rate=-0.1), "rate"),
        (lambda: DropConfig(rate=float("nan")), "rate"),
    ],
)
def test_impossible_settings_are_named(make, field):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        make()
