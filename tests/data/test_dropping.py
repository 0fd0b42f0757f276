"""Drop rates are distributed as NaViT says, and what is kept is a fair subset."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navit_clip.config import build_config
from navit_clip.data.draws import SampleRandom
from navit_clip.data.dropping import DropConfig, RateSchedule, draw_kept, num_kept
from navit_clip.errors import ConfigError

FALLING = RateSchedule(midpoint_images=500, timescale_images=-100)

NAVIT_TAILS = {
    (0.4, 0.10): 60.3, (0.4, 0.25): 11.5, (0.4, 0.35): 1.3,
    (0.7, 0.10): 66.9, (0.7, 0.25): 27.3, (0.7, 0.50): 2.3, (0.7, 0.65): 0.1,
    (0.9, 0.10): 70.4, (0.9, 0.25): 33.5, (0.9, 0.50): 5.9, (0.9, 0.70): 0.9, (0.9, 0.85): 0.1,
}  # fmt: skip
"""(d_max, mean) -> P(d < 0.1) in per cent, as printed in the paper."""


def rates(
    config: DropConfig, number: int = 4000, images_seen: float = 0.0, length: float = 0.5
) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.array([config.draw_rate(random, images_seen, length) for _ in range(number)])


@pytest.mark.parametrize(("pair", "per_cent"), NAVIT_TAILS.items(), ids=map(str, NAVIT_TAILS))
def test_beta_has_the_tails_that_the_paper_prints(pair, per_cent):
    max_rate, mean = pair
    drawn = rates(DropConfig(kind="beta", rate=mean, max_rate=max_rate), number=40_000)
    assert 100 * (drawn < 0.1).mean() == pytest.approx(per_cent, abs=1)
    assert drawn.mean() == pytest.approx(mean, abs=0.01)
    share = mean / max_rate
    assert (drawn / max_rate).var() == pytest.approx(0.3 * share * (1 - share), rel=0.05)
    assert drawn.max() <= max_rate


def test_constant_draws_nothing():
    random = np.random.default_rng(0)
    assert DropConfig(rate=0.5).draw_rate(random, 0.0, 0.0) == 0.5
    assert random.bytes(8) == np.random.default_rng(0).bytes(8)


@pytest.mark.parametrize(("length", "mean"), [(-1.0, 0.1), (0.0, 0.1), (0.25, 0.3), (1.0, 0.9), (2.0, 0.9)])
def test_longer_images_lose_more(length, mean):
    config = DropConfig(kind="by_length")
    drawn = rates(config, length=length)
    assert drawn.mean() == pytest.approx(mean, abs=2e-3)
    assert np.abs(drawn - mean).max() <= 0.04 + 1e-9, "two standard deviations"
    assert drawn.std() == pytest.approx(0.02 * 0.88, rel=0.05), "a normal distribution cut off at two"
    assert drawn.min() >= config.least_rate(min(max(length, 0.0), 1.0))


def test_a_schedule_by_hand():
    sigmoid = 1 / (1 + np.exp(2))
    assert FALLING.rate(500.0) == pytest.approx(0.5)
    assert FALLING.rate(700.0) == pytest.approx(0.2 + 0.6 * sigmoid)
    rising = RateSchedule(midpoint_images=500, timescale_images=100)
    assert rising.rate(700.0) == pytest.approx(0.8 - 0.6 * sigmoid)
    assert FALLING.rate(-1e9) == pytest.approx(0.8)
    assert FALLING.rate(1e9) == pytest.approx(0.2), "no overflow however far"


def test_a_schedule_moves_the_constant_and_the_mean():
    assert rates(DropConfig(schedule=FALLING), 3, images_seen=500.0) == pytest.approx([0.5] * 3)
    beta = DropConfig(kind="beta", schedule=FALLING)
    early, late = (rates(beta, images_seen=images).mean() for images in (0.0, 1000.0))
    assert early == pytest.approx(FALLING.rate(0.0), abs=0.01)
    assert late == pytest.approx(FALLING.rate(1000.0), abs=0.01)


@given(
    st.integers(1, 400),
    st.sampled_from(
        [
            DropConfig(),
            DropConfig(rate=0.999),
            DropConfig(kind="beta", rate=0.5),
            DropConfig(kind="beta", max_rate=0.99, rate=0.98),
            DropConfig(kind="by_length"),
            DropConfig(schedule=FALLING),
            DropConfig(kind="beta", schedule=FALLING),
        ]
    ),
    st.floats(0, 2000),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_at_least_one_patch_stays_and_at_most_what_the_budget_counts_with(
    num_patches, config, images_seen, length, key
):
    random = SampleRandom(0, 0, str(key))
    rate = config.draw_rate(random, images_seen, length)
    kept = draw_kept(num_patches, rate, random)
    assert len(kept) == num_kept(num_patches, rate) == max(1, round(num_patches * (1 - rate)))
    assert len(kept) <= num_kept(num_patches, config.least_rate(length))
    assert (np.diff(kept) > 0).all()
    assert kept[0] >= 0
    assert kept[-1] < num_patches


def test_numbers_that_images_share_are_read_only():
    first, second = (draw_kept(6, 0.0, SampleRandom(0, 0, key)) for key in "ab")
    assert first is second
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 9


def test_every_patch_is_kept_equally_often():
    kept = [draw_kept(10, 0.5, SampleRandom(0, 0, str(key))) for key in range(2000)]
    counts = np.bincount(np.concatenate(kept), minlength=10)
    assert np.abs(counts - 1000).max() < 120


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1.0}, "rate: expected a share in"),
        ({"rate": -0.1}, "rate: expected a share in"),
        ({"rate": float("nan")}, "rate: expected a share in"),
        ({"kind": "beta", "rate": 0.5, "max_rate": 1.0}, "max_rate: expected a share in"),
        ({"kind": "beta", "rate": 0.5, "max_rate": -0.5}, "max_rate: expected a share in"),
        ({"kind": "beta"}, r"rate: expected a mean in \(0, max_rate\), which is 0.9, found 0.0"),
        ({"kind": "beta", "rate": 0.5, "max_rate": 0.5}, "rate: expected a mean in .* found 0.5"),
        (
            {"kind": "beta", "max_rate": 0.7, "schedule": FALLING},
            r"rate: .* found 0.2 to 0.8 over the schedule",
        ),
        ({"kind": "by_length", "short_rate": 0.01}, r"short_rate: expected in \[0.04, 0.96\)"),
        ({"kind": "by_length", "long_rate": 0.97}, r"long_rate: expected in \[0.04, 0.96\)"),
        ({"kind": "by_length", "deviation": -0.1}, "deviation: expected in .0, 0.25., .* found -0.1"),
        ({"kind": "by_length", "deviation": 0.3}, "deviation: expected in .0, 0.25., .* found 0.3"),
        ({"kind": "by_length", "deviation": float("nan")}, "deviation: expected .* found nan"),
        ({"kind": "by_length", "schedule": FALLING}, "schedule: only kind constant or beta has it"),
        ({"kind": "by_length", "rate": 0.5}, "rate: only kind constant or beta has it, found kind by_length"),
        ({"deviation": 0.3}, "deviation: only kind by_length has it"),
        ({"rate": 0.5, "schedule": FALLING}, "rate: the schedule decides it"),
        ({"max_rate": 0.5}, "max_rate: only kind beta has it, found kind constant"),
        ({"kind": "beta", "rate": 0.5, "long_rate": 0.8}, "long_rate: only kind by_length has it"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        DropConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timescale_images": 0}, "timescale_images: expected images, above 0 .* found 0"),
        ({"min_rate": 0.8, "max_rate": 0.2}, "max_rate: expected at least min_rate, which is 0.8, found 0.2"),
        ({"max_rate": 1.0}, "max_rate: expected a share in"),
        ({"min_rate": -0.2}, "min_rate: expected a share in"),
    ],
)
def test_impossible_schedules_are_named(settings, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        RateSchedule(**{"midpoint_images": 500, "timescale_images": -100, **settings})


def test_a_schedule_is_built_from_plain_data():
    tree = {"kind": "beta", "schedule": {"midpoint_images": 500, "timescale_images": -100}}
    assert build_config(DropConfig, tree, where="here").schedule == FALLING
    with pytest.raises(ConfigError, match=r"here: schedule\.midpoint_images: required"):
        build_config(DropConfig, {"schedule": {"timescale_images": 5}}, where="here")
    with pytest.raises(ConfigError, match=r"here: schedule\.timescale_images: expected images"):
        build_config(DropConfig, {"schedule": {"midpoint_images": 1, "timescale_images": 0}}, where="here")
