from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.bootstrap import Bootstrap
from eval.calibration import bucket_of, calibration_error_interval, calibration_gaps, reliability

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


def test_interval_holds_the_errors_of_resamples():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.3, 1, size=400)
    right = generator.uniform(size=400) < confidence
    (gaps,) = Bootstrap(400).totals(calibration_gaps(confidence, right))
    low, high = calibration_error_interval(gaps, num_images=400)
    errors = []
    for _ in range(400):
        drawn = generator.integers(400, size=400)
        errors.append(reliability(confidence[drawn], right[drawn]).error)
    assert [low, high] == pytest.approx(np.quantile(errors, [0.025, 0.975]).tolist(), abs=0.01)
