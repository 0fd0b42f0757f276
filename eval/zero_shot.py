"""Zero-shot classification: image and class embeddings -> what is answered, how surely -> metrics.

The metrics carry CLIP_benchmark's names and mean what they mean there: `acc1` and `acc5` over images,
`mean_per_class_recall` over the classes that have an image (scikit-learn's balanced accuracy). Where
there are fewer than five answers there is no `acc5`; where an image may have several labels there are no
per-class recalls. Beside them stand `ece` and `nll`, see `eval.calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from eval.bootstrap import Bootstrap, Interval, Totals, interval
from eval.calibration import calibration_error_interval, calibration_gaps, reliability
from eval.class_space import ClassSpace
from eval.ranking import best_rank, share_within

IMAGES_AT_ONCE = 4096
"""Images scored together: bounds the logits kept, whatever the size of the data set."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What a model made of each image."""

    ranks: Int64[Tensor, " images"]
    """How many answers score above the best right one."""
    answers: Int64[Tensor, " images"]
    """The answer that scores highest."""
    confidence: Float[Tensor, " images"]
    """Its probability."""
    surprise: Float[Tensor, " images"]
    """-log of the probability of all right answers together, in nats."""

    @property
    def right(self) -> Bool[np.ndarray, " images"]:
        return (self.ranks == 0).numpy()


def classify(
    images: Float[Tensor, "images dim"],
    columns: Float[Tensor, "columns dim"],
    space: ClassSpace,
    accepted: Sequence[Sequence[int]],
    logit_scale: float,
) -> Outcomes:
    """Scores images against columns.

    Args:
        images: unit vectors.
        columns: unit vectors, one per prompt of the space.
        space: what columns stand for.
        accepted: the labels that count as right, at least one for each image.
        logit_scale: what cosines are multiplied with before the softmax.
    """
    tiles = [
        classify_scores(
            tile @ columns.T, space, accepted[number * IMAGES_AT_ONCE :][: len(tile)], logit_scale
        )
        for number, tile in enumerate(images.split(IMAGES_AT_ONCE))
    ]
    return Outcomes(
        ranks=torch.cat([tile.ranks for tile in tiles]),
        answers=torch.cat([tile.answers for tile in tiles]),
        confidence=torch.cat([tile.confidence for tile in tiles]),
        surprise=torch.cat([tile.surprise for tile in tiles]),
    )


def classify_scores(
    scores: Float[Tensor, "images columns"],
    space: ClassSpace,
    accepted: Sequence[Sequence[int]],
    logit_scale: float = 1.0,
) -> Outcomes:
    """`classify` for scores that are there already; any classifier's logits do."""
    scores = space.ranked(scores)
    relevant = space.relevant(accepted).to(scores.device)
    log_probabilities = (logit_scale * scores.double()).log_softmax(dim=1)
    best, answers = log_probabilities.max(dim=1)
    own = log_probabilities.masked_fill(~relevant, -torch.inf).logsumexp(dim=1)
    return Outcomes(best_rank(scores, relevant).cpu(), answers.cpu(), best.exp().cpu(), -own.cpu())


def classification_metrics(
    outcomes: Outcomes, space: ClassSpace, labels: Int64[np.ndarray, " images"] | None
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Every metric, and its 95 % interval over resampled images.

    Args:
        outcomes: what the model made of the images.
        space: of the answers.
        labels: the class of each image; None where images have several, which leaves out recalls by class.
    """
    confidence, surprise = outcomes.confidence.numpy(), outcomes.surprise.numpy()
    metrics = {"acc1": share_within(outcomes.ranks, 1)}
    means = {"acc1": outcomes.right.astype(float), "nll": surprise}
    if len(space.answers) >= 5:
        metrics["acc5"] = share_within(outcomes.ranks, 5)
        means["acc5"] = (outcomes.ranks < 5).numpy().astype(float)
    if labels is not None:
        recalls = per_class_recall(outcomes.ranks, torch.from_numpy(labels))
        metrics["mean_per_class_recall"] = sum(recalls.values()) / len(recalls)
    metrics["ece"] = reliability(confidence, outcomes.right).error
    metrics["nll"] = float(surprise.mean())

    num_images = len(outcomes.ranks)
    bootstrap = Bootstrap(num_images)
    intervals = dict(zip(means, bootstrap.mean_intervals(*means.values()), strict=True))
    gaps = calibration_gaps(confidence, outcomes.right)
    wanted = [gaps]
    if labels is not None:
        # Wrong and right images of each class, in turns.
        cells = 2 * labels + outcomes.right
        wanted.append(Totals(np.ones(num_images), cells, 2 * len(space.classes)))
    resampled, *counts = bootstrap.totals(*wanted)
    intervals["ece"] = calibration_error_interval(gaps.sums(), resampled, num_images)
    if counts:
        counted = counts[0].reshape(len(resampled), -1, 2)
        intervals["mean_per_class_recall"] = _recall_interval(counted, metrics["mean_per_class_recall"])
    return metrics, intervals


def per_class_recall(ranks: Int64[Tensor, " images"], labels: Int64[Tensor, " images"]) -> dict[int, float]:
    """For each class that has an image, the share of its images that were classified as it."""
    return {label: share_within(ranks[labels == label], 1) for label in sorted(set(labels.tolist()))}


def _recall_interval(counts: Float[np.ndarray, "resamples classes 2"], score: float) -> Interval:
    """From each class's wrong and right images; a resample's mean is over the classes that it holds.

    Those are more often the large ones, whose recall may be another, so that resamples lie to one side of the
    score: they are moved by as much as their mean is off it.
    """
    held = counts.sum(axis=2)
    recalls = (counts[:, :, 1] / np.maximum(held, 1)).sum(axis=1) / (held > 0).sum(axis=1)
    return interval(np.clip(recalls - recalls.mean() + score, 0, 1))


def classification_chance(
    space: ClassSpace, accepted: Sequence[Sequence[int]], by_class: bool
) -> dict[str, float]:
    """What guessing at random scores, metric by metric: k different answers drawn, all equally likely.

    An image with m right answers among n is missed by k random ones with probability C(n - m, k) / C(n, k).

    Args:
        space: of the answers.
        accepted: the labels that count as right for each image.
        by_class: whether recalls by class count, too.
    """
    num_answers = len(space.answers)
    num_right = space.relevant(accepted).sum(dim=1).tolist()
    share = {
        m: {k: 1 - comb(num_answers - m, k) / comb(num_answers, k) for k in (1, 5) if k <= num_answers}
        for m in set(num_right)
    }
    chance = {f"acc{k}": sum(share[m][k] for m in num_right) / len(num_right) for k in share[num_right[0]]}
    if by_class:
        by_label = {labels[0]: share[m][1] for labels, m in zip(accepted, num_right, strict=True)}
        chance["mean_per_class_recall"] = sum(by_label.values()) / len(by_label)
    return chance
