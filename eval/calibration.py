"""How far confidence can be believed: expected calibration error and its reliability diagram, and likelihood.

Probabilities are the softmax over answers of logit scale x cosine, the model's own scale: the convention
for zero-shot classifiers, also of models that were trained with a sigmoid (whose bias a softmax cancels).
The calibration error is l1 over 30 equal buckets of confidence, as in NaViT (figure 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from eval.bootstrap import Interval, Totals, interval

NUM_BUCKETS = 30
CLEAR = 3.0
"""Standard deviations from which on a bucket's gap is not taken for chance."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Images by confidence, bucket by bucket."""

    counts: Float[np.ndarray, " buckets"]
    confidence: Float[np.ndarray, " buckets"]
    """Mean confidence of the bucket's images; 0 where it has none."""
    accuracy: Float[np.ndarray, " buckets"]
    """Share of them that are right; 0 where it has none."""

    @property
    def error(self) -> float:
        """sum over buckets of their share of the images x |accuracy - confidence|, between 0 and 1."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float((self.counts * gaps).sum() / self.counts.sum())

    def as_json(self) -> list[dict[str, Any]]:
        """The buckets that have images."""
        columns = zip(self.counts.tolist(), self.confidence.tolist(), self.accuracy.tolist(), strict=True)
        return [
            {"bucket": number, "count": int(count), "confidence": confidence, "accuracy": accuracy}
            for number, (count, confidence, accuracy) in enumerate(columns)
            if count
        ]


def bucket_of(confidence: Float[np.ndarray, " images"], num_buckets: int = NUM_BUCKETS) -> np.ndarray:
    """The bucket of each confidence: b / buckets < confidence <= (b + 1) / buckets."""
    return np.clip(np.ceil(confidence * num_buckets).astype(np.int64) - 1, 0, num_buckets - 1)


def reliability(
    confidence: Float[np.ndarray, " images"],
    right: Bool[np.ndarray, " images"],
    num_buckets: int = NUM_BUCKETS,
) -> Reliability:
    """Mean confidence and accuracy in equal buckets of confidence.

    Args:
        confidence: probability of the answer given, between 0 and 1.
        right: whether that answer was right.
        num_buckets: how many.
    """
    bucket = bucket_of(confidence, num_buckets)
    counts = np.bincount(bucket, minlength=num_buckets).astype(np.float64)
    filled = np.maximum(counts, 1)
    return Reliability(
        counts,
        np.bincount(bucket, confidence, num_buckets) / filled,
        np.bincount(bucket, right, num_buckets) / filled,
    )


def calibration_gaps(confidence: Float[np.ndarray, " images"], right: Bool[np.ndarray, " images"]) -> Totals:
    """What a resample adds up bucket by bucket: the error is the mean size of these sums' parts."""
    return Totals(right - confidence, bucket_of(confidence), NUM_BUCKETS)


def calibration_error_interval(
    gaps: Float[np.ndarray, " buckets"], resampled: Float[np.ndarray, "resamples buckets"], num_images: int
) -> Interval:
    """The interval of the calibration error that the same buckets have over all images there could be.

    Chance alone gives every bucket a gap, so the error is too large in the mean, and on resamples twice: the
    middle of theirs is no interval. What is resampled is the gaps, which chance moves either way. Where a gap
    is far from nothing, its size moves as it does; elsewhere chance may have added all that it can, and the
    lower end allows for that (moment selection, Andrews and Soares 2010). So it reaches 0 for a model whose
    confidence can be believed, and it always holds the error that was found.

    Args:
        gaps: the sums of `calibration_gaps`.
        resampled: the same over resampled images.
        num_images: how many.
    """
    moved = resampled - gaps
    signed = np.sign(gaps) * moved
    is_clear = np.abs(gaps) > CLEAR * moved.std(axis=0)
    added = np.where(is_clear, signed, np.abs(moved)).sum(axis=1)
    _, most_added = interval(added)
    most_taken, _ = interval(signed.sum(axis=1))
    error = np.abs(gaps).sum()
    low, high = max(0.0, error - max(0.0, most_added)), error - min(0.0, most_taken)
    return low / num_images, min(1.0, high / num_images)
