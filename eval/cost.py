"""What accuracy costs: one set of weights at several numbers of tokens per image, in several ways.

    resized          images resized to that many tokens (NaViT §3.7)
    not upscaled     the same, but images that have fewer of their own keep theirs
    dropped          images at the most tokens of all, of which that many are kept at random
    cascade          all images at few tokens; the least confident share of them again, at more

A cascade costs t1 + share x t2 (NaViT, appendix on cascades): both in tokens and in measured time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from eval.bootstrap import Bootstrap
from eval.image_config import ImageConfig
from eval.zero_shot import Outcomes

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)


class Judged(NamedTuple):
    """What a model made of a data set, and what an image cost it."""

    outcomes: Outcomes
    mean_tokens: float
    seconds_per_image: float


Judge = Callable[[ImageConfig], Judged]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPoint:
    """An accuracy and what it cost."""

    way: str
    """See the module."""
    tokens_per_image: int
    """What was asked for; of a cascade, of its second stage."""
    mean_tokens: float
    """What an image came to."""
    seconds_per_image: float
    """Of the image tower, measured apart, once it is warm."""
    acc1: float
    interval: tuple[float, float]
    """Of acc1, over resampled images."""
    first_tokens: int = 0
    """Of a cascade's first stage."""
    share: float = 0.0
    """Of the images that a cascade shows twice."""


def measure_cost(judge: Judge, cost_tokens: Sequence[int], config: ImageConfig) -> list[dict[str, Any]]:
    """Every point, as JSON.

    Args:
        judge: embeds and classifies the data set with images shown as asked, and says what that cost.
        cost_tokens: tokens per image.
        config: how images are shown otherwise.

    Raises:
        ConfigError: the model takes every image at one size.
    """
    tokens = sorted(set(cost_tokens))
    shown = {count: replace(config, tokens_per_image=count, upscale=True, keep=1.0) for count in tokens}
    not_upscaled = {count: judge(replace(shown[count], upscale=False)) for count in tokens}
    resized = {count: judge(shown[count]) for count in tokens}
    dropped = {count: judge(replace(shown[tokens[-1]], keep=count / tokens[-1])) for count in tokens[:-1]}
    points = [
        _point(way, count, judged)
        for way, by_tokens in (("resized", resized), ("not upscaled", not_upscaled), ("dropped", dropped))
        for count, judged in by_tokens.items()
    ]
    points += [
        cascade(first, resized[first], second, resized[second], share)
        for first, second in combinations(tokens, 2)
        for share in SHARES
    ]
    return [asdict(point) for point in points]


def cascade(
    first_tokens: int,
    first: Judged,
    second_tokens: int,
    second: Judged,
    share: float,
) -> CostPoint:
    """The accuracy where the least confident share of the images goes on to the second stage."""
    count = round(share * len(first.outcomes.ranks))
    again = first.outcomes.confidence.argsort(stable=True)[:count].numpy()
    right = first.outcomes.right.copy()
    right[again] = second.outcomes.right[again]
    return CostPoint(
        way="cascade",
        first_tokens=first_tokens,
        tokens_per_image=second_tokens,
        share=share,
        mean_tokens=first.mean_tokens + share * second.mean_tokens,
        seconds_per_image=first.seconds_per_image + share * second.seconds_per_image,
        **_accuracy(right),
    )


def _point(way: str, tokens: int, judged: Judged) -> CostPoint:
    return CostPoint(
        way=way,
        tokens_per_image=tokens,
        mean_tokens=judged.mean_tokens,
        seconds_per_image=judged.seconds_per_image,
        **_accuracy(judged.outcomes.right),
    )


def _accuracy(right: np.ndarray) -> dict[str, Any]:
    (interval,) = Bootstrap(len(right)).mean_intervals(right.astype(float))
    return {"acc1": float(right.mean()), "interval": interval}
