"""What a task comes to, and its record: CLIP_benchmark's schema, and ours beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any

from eval.bootstrap import Interval
from eval.image_config import ImageConfig
from eval.task_config import TaskConfig

PACKAGES = ("navit-clip", "torch", "open_clip_torch", "transformers", "timm")
"""Packages whose version may move a number."""

RUNNING = ("num_workers", "token_budget")
"""Settings that say how fast a number is had, and not which."""

UNITS = {"nll": "nats", "ece": ""}
"""Of metrics that are no shares."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The scores of one task."""

    config: TaskConfig
    images: ImageConfig
    """How images were shown."""
    metrics: dict[str, float]
    """Under CLIP_benchmark's names: shares between 0 and 1, and nll in nats."""
    intervals: dict[str, Interval]
    """Where each metric lies in 95 of 100 resamples of the data set."""
    chance: dict[str, float]
    """What guessing at random scores, where that can be said."""
    scoring: str
    """What counts as right."""
    num_samples: int
    """Images that counted."""
    skipped: dict[str, int]
    """Samples that could not be used, by cause; a result with any is not of the whole data set."""
    complete: bool
    """Whether every image of the data set counted."""
    mean_tokens: float
    """Tokens that an image had."""
    notes: list[str]
    """What a reader of the scores should know."""
    details: dict[str, Any]
    """Results per class, templates, reliability, mistakes; or examples of what captions retrieved."""

    @property
    def tokens_per_image(self) -> int:
        """At most; what a packed model was asked for."""
        return self.images.tokens_per_image

    def as_json(self, model: str, pretrained: str, weights: str = "") -> dict[str, Any]:
        """CLIP_benchmark's record of a result, and beside it our own.

        Args:
            model: what was judged.
            pretrained: which of its weights.
            weights: their hash.
        """
        shown = [f.name for f in fields(ImageConfig) if f.name not in RUNNING]
        return {
            "dataset": self.config.dataset,
            "model": model,
            "pretrained": pretrained,
            "task": self.config.task,
            "metrics": self.metrics,
            "language": self.config.language,
            "intervals": self.intervals,
            "chance": self.chance,
            "num_samples": self.num_samples,
            "skipped": self.skipped,
            "complete": self.complete,
            "tokens_per_image": self.tokens_per_image,
            "mean_tokens": self.mean_tokens,
            "notes": self.notes,
            "protocol": {
                "scoring": self.scoring,
                "task": asdict(self.config),
                "images": {name: getattr(self.images, name) for name in shown},
            },
            "weights": weights,
            "versions": {package: version(package) for package in PACKAGES},
            **self.details,
        }


def shown_metric(name: str, value: float) -> str:
    """A metric for people: shares in per cent, others in their unit."""
    return f"{value:.4f} {UNITS[name]}".rstrip() if name in UNITS else f"{100 * value:.2f} %"
