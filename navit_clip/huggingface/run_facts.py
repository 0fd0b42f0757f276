"""What a run's folder says of how its model was trained and how well it did, for a model card.

A model folder alone says nothing, and then the card says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

RECIPE = {
    "pairs": "image-text pairs seen",
    "data.resolution": "image sides drawn (pixels)",
    "data.drop": "patches dropped",
    "data.augmentation": "augmentation",
    "data.tokens_per_batch": "image tokens a batch and rank",
    "loss": "loss",
    "optimizer.learning_rate": "peak learning rate",
    "optimizer.weight_decay": "weight decay",
    "schedule": "schedule",
    "init_from": "towers started from",
    "engine.precision": "precision",
    "seed": "seed",
}
"""Settings of a run that a card names, and in which words."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Rows of a card's tables."""

    recipe: list[tuple[str, str]]
    """What was set, and to what."""
    shards: list[str]
    """Patterns of the training data."""
    results: list[dict[str, Any]]
    """Records of evaluations: dataset, task, metrics, tokens_per_image, num_samples."""


def read_run_facts(run: Path) -> RunFacts:
    """Facts of a run folder; empty for a folder of another kind."""
    path = run / "config.yaml"
    config = OmegaConf.load(path) if path.exists() else OmegaConf.create()
    settings = {words: OmegaConf.select(config, key) for key, words in RECIPE.items()}
    recipe = [(words, _shown(value)) for words, value in settings.items() if value is not None]
    shards = [str(pattern) for pattern in OmegaConf.select(config, "data.shards") or []]
    return RunFacts(recipe, shards, _results(run))


def _results(run: Path) -> list[dict[str, Any]]:
    """The newest of each data set and task: during the run, and by `navit-clip eval` afterwards."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    during = [row for row in map(json.loads, lines) if "dataset" in row and "metrics" in row]
    files = sorted((run / "eval").glob("*.json"), key=lambda path: path.stat().st_mtime)
    afterwards = [
        record for record in (json.loads(path.read_text()) for path in files) if "metrics" in record
    ]
    return list({(row["dataset"], row["task"]): row for row in [*during, *afterwards]}.values())


def _shown(value: Any) -> str:
    if not isinstance(value, DictConfig):
        return str(value)
    return ", ".join(
        f"{name} {_shown(part)}" for name, part in value.items() if part not in (None, "", [], {})
    )
