from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.bootstrap import Bootstrap
from eval.calibration import (
    NUM_BUCKETS,
    bucket_of,
    calibration_error_interval,
    calibration_gaps,
    reliability,
)

# Two buckets of ten hold images: (0.6, 0.7] has three, of which two are right, and (0.9, 1.0] one, wrong.
CONFIDENCE = np.array([0.65, 0.62, 0.68, 0.95])
RIGHT = np.array([True, True, False, False])


def test_hand_worked_error():
    diagram = reliability(CONFIDENCE, RIGHT, num_buckets=10)
    assert diagram.counts.tolist() == [0, 0, 0, 0, 0, 0, 3, 0, 0, 1]
    assert diagram.confidence[[6, 9]].tolist() == pytest.approx([0.65, 0.95])
    assert diagram.accuracy[[6, 9]].tolist() == pytest.approx([2 / 3, 0])
    assert diagram.error == pytest.approx(3 / 4 * (2 / 3 - 0.65) + 1 / 4 * 0.95)
    assert [bucket["bucket"] for bucket in diagram.as_json()] == [6, 9]


def test_buckets_hold_their_upper_edge():
    assert bucket_of(np.array([0.0, 0.1, 0.100001, 1.0]), 10).tolist() == [0, 0, 1, 9]


def test_error_is_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(500, 7, generator=generator)).softmax(dim=1)
    labels = torch.randint(0, 7, (500,), generator=generator)
    confidence, answers = probabilities.max(dim=1)
    ours = reliability(confidence.numpy(), (answers == labels).numpy()).error
    theirs = torchmetrics.multiclass_calibration_error(
        probabilities, labels, num_classes=7, n_bins=30, norm="l1"
    )
    assert ours == pytest.approx(theirs.item(), abs=1e-6)


def believed(confidence: np.ndarray) -> np.ndarray:
    return confidence


def too_sure(confidence: np.ndarray) -> np.ndarray:
    return confidence - 0.15


def too_sure_above(confidence: np.ndarray) -> np.ndarray:
    return confidence - 0.2 * (confidence > 20 / NUM_BUCKETS)


@pytest.mark.parametrize(
    ("accuracy", "error", "widest"),
    [(believed, 0.0, 0.17), (too_sure, 0.15, 0.18), (too_sure_above, 0.2 * 10 / 21, 0.19)],
)
def test_the_interval_holds_the_error_of_all_images_and_the_one_found(accuracy, error, widest):
    """Models whose calibration is known, judged on 400 images a hundred times each."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        confidence = generator.uniform(9 / NUM_BUCKETS, 1, size=400)
        right = generator.uniform(size=400) < accuracy(confidence)
        gaps = calibration_gaps(confidence, right)
        (resampled,) = Bootstrap(400, num_resamples=200).totals(gaps)
        low, high = calibration_error_interval(gaps.sums(), resampled, num_images=400)
        assert low <= reliability(confidence, right).error <= high
        assert high - low < widest
        held += low <= error <= high
    assert held >= 92


def test_the_interval_narrows_to_a_known_error():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(9 / NUM_BUCKETS, 1, size=40_000)
    gaps = calibration_gaps(confidence, generator.uniform(size=40_000) < too_sure(confidence))
    (resampled,) = Bootstrap(40_000, num_resamples=200).totals(gaps)
    low, high = calibration_error_interval(gaps.sums(), resampled, num_images=40_000)
    assert 0.13 < low < high < 0.16
    assert high - low < 0.012
