"""What a run's folder says of how its model was trained and how well it did, for a model card.

Of evaluations those of the exported weights count, and no others: a run may have gone on since. A model
folder outside a run says nothing of its training, and then the card says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navit_clip.json_lines import read_json_lines
from navit_clip.run_settings import RunSettings, run_folder
from navit_clip.weights import RESULTS_FOLDER, resolve_model_folder

RECIPE = {
    "pairs": "image-text pairs to see in all",
    "data.weights": "times that an epoch has each source",
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


OF_KIND = {
    "constant": ("rate", "schedule"),
    "beta": ("rate", "max_rate", "schedule"),
    "by_length": ("short_rate", "long_rate", "deviation"),
    "cosine": ("warmup_pairs", "final_share"),
}
"""What a kind of dropping or schedule goes by; a config has the settings of the other kinds, too."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Rows of a card's tables."""

    recipe: list[tuple[str, str]]
    """What was set, and to what."""
    shards: list[str]
    """Patterns of the training data."""
    results: list[dict[str, Any]]
    """Records of evaluations: dataset, task, metrics, tokens_per_image, num_samples."""


def read_run_facts(path: Path, weights: str) -> RunFacts:
    """Facts of the run that a path is or lies in, and what the model there was found to do.

    Args:
        path: a run, checkpoint or model folder.
        weights: hash of the model's weights.

    Raises:
        ConfigError: the run's config.yaml cannot be read, or says what cannot be.
        DataError: its metrics or a file of results is not what it should be.
    """
    run = run_folder(path)
    settings = RunSettings(run) if run else None
    at_step = list(_rows_of_step(run, path)) if run else []
    recipe = [*_pairs_seen(at_step), *_recipe(settings)] if settings else []
    shards = settings.texts("data.shards") if settings else []
    model = resolve_model_folder(path).resolve()
    # An evaluation leaves its results where the model was said to be: at the run, the checkpoint, or there.
    places = dict.fromkeys(place for place in (run, path.resolve(), model.parent, model) if place)
    afterwards = list(_afterwards(places, weights))
    judged = {_what(record) for record in afterwards}
    during = [row for row in at_step if "metrics" in row and "dataset" in row and _what(row) not in judged]
    newest = {(*_what(row), _how(row)): row for row in [*during, *afterwards]}
    return RunFacts(recipe, shards, list(newest.values()))


def _pairs_seen(at_step: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """As the metrics of the checkpoint's step have it: batches hold what fits, and a run may be stopped."""
    seen = {row["pairs"] for row in at_step if "pairs" in row}
    return [("image-text pairs seen", f"{pairs:,}") for pairs in seen]


def _recipe(settings: RunSettings) -> list[tuple[str, str]]:
    rows = [(words, _shown(settings.get(key, object))) for key, words in RECIPE.items()]
    return [(words, shown) for words, shown in rows if shown]


def _what(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["dataset"], row["task"], row["tokens_per_image"]


def _how(row: Mapping[str, Any]) -> str:
    """What else tells results apart, as evaluation does."""
    return json.dumps([row.get("language"), row.get("protocol")], sort_keys=True)


def _rows_of_step(run: Path, path: Path) -> Iterator[dict[str, Any]]:
    """What a run's metrics have of the step of this checkpoint: of training, and of evaluation during it."""
    step = re.fullmatch(r"step-0*(\d+)", resolve_model_folder(path).parent.name)
    metrics = run / "metrics.jsonl"
    if step is None or not metrics.exists():
        return
    for row in read_json_lines(metrics):
        if str(row.get("step")) == step[1]:
            yield row


def _afterwards(places: Iterable[Path], weights: str) -> Iterator[dict[str, Any]]:
    """What `navit-clip eval` found of these weights, the newest file last."""
    files = [file for place in places for file in (place / RESULTS_FOLDER).glob("*.jsonl")]
    for file in sorted(files, key=lambda path: path.stat().st_mtime):
        yield from (record for record in read_json_lines(file) if record.get("weights") == weights)


def _shown(value: Any) -> str:
    """A setting in words; what is off, empty or of another kind says nothing."""
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if not isinstance(value, dict):
        return "" if value is None else str(value)
    kind = value.get("kind")
    own = OF_KIND.get(kind, value) if isinstance(kind, str) else value
    parts = [
        f"{str(name).replace('_', ' ')} {_shown(setting)}"
        for name, setting in value.items()
        if name in own and name != "kind" and setting
    ]
    return ", ".join([*([str(kind).replace("_", " ")] if kind else []), *parts])
