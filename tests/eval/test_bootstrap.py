from __future__ import annotations

import numpy as np
import pytest

from eval import bootstrap
from eval.bootstrap import Bootstrap, Interval, Totals


def mean_interval(resamples: Bootstrap, values: np.ndarray) -> Interval:
    (only,) = resamples.mean_intervals(values)
    return only


def test_a_share_s_interval_is_the_binomial_one():
    """Resampling zeros and ones draws binomial counts."""
    right = np.arange(400) < 300
    counts = np.random.default_rng(1).binomial(400, 0.75, size=200_000) / 400
    expected = np.quantile(counts, [0.025, 0.975]).tolist()
    assert list(mean_interval(Bootstrap(400), right.astype(float))) == pytest.approx(expected, abs=0.006)


def test_the_same_items_have_the_same_interval():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(Bootstrap(50), values) == mean_interval(Bootstrap(50), values)
    assert mean_interval(Bootstrap(50), values) != mean_interval(Bootstrap(50, seed=1), values)


def test_nothing_to_resample_has_no_width():
    assert mean_interval(Bootstrap(1), np.array([0.7])) == pytest.approx((0.7, 0.7))
    assert mean_interval(Bootstrap(20), np.ones(20)) == (1.0, 1.0)


def test_sums_by_group_add_up():
    values = np.random.default_rng(0).normal(size=30)
    groups = np.arange(30) % 4  # group 4 has no item
    of_groups, of_all, held = Bootstrap(30, num_resamples=50).totals(
        Totals(values, groups, 5), Totals(values), Totals(np.ones(30), groups, 5)
    )
    assert of_groups.sum(axis=1) == pytest.approx(of_all[:, 0])
    assert (of_groups[:, 4] == 0).all()
    assert (held.sum(axis=1) == 30).all()


def test_what_is_drawn_together_changes_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=30)
    (whole,) = Bootstrap(30, num_resamples=40).totals(Totals(values))
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 100)
    (parts,) = Bootstrap(30, num_resamples=40).totals(Totals(values))
    assert np.array_equal(parts, whole)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_intervals_hold_the_truth_as_often_as_they_say(share):
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        right = (generator.uniform(size=200) < share).astype(float)
        low, high = mean_interval(Bootstrap(200, num_resamples=200), right)
        held += low <= share <= high
    assert 0.90 <= held / 200 <= 0.99
