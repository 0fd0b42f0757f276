"""Schedules against values worked by hand."""

from __future__ import annotations

import pytest

from navit_clip.errors import ConfigError
from training.schedule import ScheduleConfig, learning_rate_share


@pytest.mark.parametrize(
    ("pairs", "share"),
    [(0, 0.1), (8, 0.9), (9, 1.0), (54, 0.5 * (1 + 2**-0.5)), (99, 0.5), (189, 0.0), (400, 0.0)],
)
def test_cosine_rises_linearly_and_falls_by_half_a_cosine(pairs, share):
    # Warm-up over 9 pairs, then 180 of cosine: a quarter of it is at 54, the half at 99.
    found = learning_rate_share(ScheduleConfig(kind="cosine", warmup_pairs=9), pairs, total=189)
    assert found == pytest.approx(share, abs=1e-12)


def test_cosine_ends_at_its_final_share():
    config = ScheduleConfig(kind="cosine", final_share=0.1)
    assert learning_rate_share(config, 50, total=100) == pytest.approx(0.55)
    assert learning_rate_share(config, 100, total=100) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("pairs", "share"),
    [(0, 1.0), (100, 2**-0.5), (300, 0.5), (800, 1 / 3), (900, 0.5 * 10**-0.5), (1000, 0.0)],
)
def test_rsqrt_falls_with_the_root_and_cools_down_linearly(pairs, share):
    config = ScheduleConfig(kind="rsqrt", timescale_pairs=100, cooldown_pairs=200)
    assert learning_rate_share(config, pairs, total=1000) == pytest.approx(share)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"warmup_pairs": -1}, "warmup_pairs: expected at least 0, found -1"),
        ({"final_share": 1.5}, "final_share: expected between 0 and 1, found 1.5"),
        ({"cooldown_pairs": 5}, "cooldown_pairs: only kind rsqrt has it, found kind cosine"),
        ({"timescale_pairs": 7}, "timescale_pairs: only kind rsqrt has it, found kind cosine"),
        ({"timescale_pairs": 0}, "timescale_pairs: expected at least 1, found 0"),
    ],
)
def test_impossible_schedules_name_their_setting(setting, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**setting)
