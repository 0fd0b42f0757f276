"""Checkpoints: a whole folder per saved step, and a file that names the latest.

    RUN/checkpoints/latest                    the name of the newest folder
    RUN/checkpoints/step-00001000/model/      weights, config, tokenizer: what evaluation and export read
    RUN/checkpoints/step-00001000/engine/     DeepSpeed's own files: weights, optimizer (pickled: only load
                                              what your own runs wrote)
    RUN/checkpoints/step-00001000/run.json    step, pairs, and each rank's place in the data

A folder is written beside its place and renamed into it when every rank is done, and `latest` is replaced
after that: whatever moment a run is killed at, the last checkpoint named there is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navit_clip.config import load_config
from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, ConfigError
from navit_clip.model import ClipConfig
from navit_clip.tokenizer import Tokenizer, load_tokenizer, same_tokenizer
from navit_clip.weights import CONFIG_FILE, TOKENIZER_FOLDER, config_differences, save_model
from training.engine import Engine

LATEST = "latest"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep. A run always saves when it ends."""

    every: int = 1000
    """Steps between checkpoints."""
    keep: int = 3
    """Newest checkpoints that stay; 0 keeps all."""

    def __post_init__(self):
        if self.every < 1:
            raise ConfigError(f"every: expected at least 1, found {self.every}")
        if self.keep < 0:
            raise ConfigError(f"keep: expected at least 0, found {self.keep}")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps taken."""
    pairs: int = 0
    """Pairs trained on, over all ranks."""


def save_checkpoint(
    run: Path,
    progress: Progress,
    engine: Engine,
    tokenizer: Tokenizer,
    loader_state: Any,
    world: World,
    keep: int,
) -> Path:
    """Saves the run as it is after a step; all ranks call it together.

    Returns:
        The checkpoint's folder.
    """
    folder = run / "checkpoints" / f"step-{progress.step:08d}"
    partial = folder.with_name(f".{folder.name}.partial")
    if world.is_main:
        for stale in folder.parent.glob(".step-*.partial"):  # left by a run that was killed while saving
            shutil.rmtree(stale)
        partial.mkdir(parents=True)
    world.barrier()
    engine.save(partial)
    model = engine.whole_model()
    loaders = world.gather_objects(loader_state)
    if world.is_main:
        save_model(model, tokenizer, partial / "model")
        record = {
            "step": progress.step,
            "pairs": progress.pairs,
            "world_size": world.size,
            "zero_stage": engine.config.zero_stage,
            "loaders": loaders,
        }
        (partial / "run.json").write_text(json.dumps(record))
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed before naming it
        partial.rename(folder)
        name_latest(folder)
        _discard_old(folder, keep)
    world.barrier()
    return folder


def load_checkpoint(folder: Path, engine: Engine, tokenizer: Tokenizer, world: World) -> tuple[Progress, Any]:
    """Restores weights and optimizer from a checkpoint folder; all ranks call it together.

    Args:
        folder: the checkpoint.
        engine: what is restored.
        tokenizer: the run's, which is to be the one that the checkpoint's text tower learned to read.
        world: the ranks.

    Returns:
        How far the run had come, and this rank's loader state.

    Raises:
        CheckpointError: the folder is not whole, or was saved by another model, with another tokenizer, or at
            another world size or ZeRO stage.
    """
    try:
        record = json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: not a checkpoint: there is no run.json in it") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{folder}/run.json: not readable as JSON: {error}") from error
    check_same_model(folder, engine.model_config)
    if not same_tokenizer(load_tokenizer(folder / "model" / TOKENIZER_FOLDER), tokenizer):
        raise CheckpointError(
            f"{folder}: saved by a run with another tokenizer, so its text tower would read other words; set "
            f"tokenizer={folder / 'model' / TOKENIZER_FOLDER}"
        )
    for name, found, expected in (
        ("ranks", record["world_size"], world.size),
        ("engine.zero_stage", record["zero_stage"], engine.config.zero_stage),
    ):
        if found != expected:
            raise CheckpointError(
                f"{folder}: saved with {name} {found}, this run has {expected}; run it alike"
            )
    engine.load(folder)
    return Progress(record["step"], record["pairs"]), record["loaders"][world.rank]


def check_same_model(folder: Path, expected: ClipConfig) -> None:
    """Raises CheckpointError, naming each setting that differs, where a checkpoint is of another model."""
    found = load_config(ClipConfig, folder / "model" / CONFIG_FILE)
    if differences := list(config_differences(found, expected, "model")):
        raise CheckpointError(f"{folder}: a checkpoint of another model: {'; '.join(differences)}")


def find_checkpoint(run: Path, asked: str) -> Path:
    """The folder that `--resume` means: `latest` of the run, or a path.

    Raises:
        CheckpointError: there is none.
    """
    if asked != LATEST:
        return Path(asked)
    latest = run / "checkpoints" / LATEST
    if not latest.exists():
        raise CheckpointError(f"{run}: nothing to resume: there is no {latest}")
    return latest.parent / latest.read_text().strip()


def name_latest(folder: Path) -> None:
    """Makes a checkpoint the run's latest: a reader sees the old name or the new one, never half."""
    partial = folder.with_name(f".{LATEST}.partial")
    with partial.open("w") as file:
        file.write(folder.name)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder.with_name(LATEST))


def _discard_old(newest: Path, keep: int) -> None:
    """Leaves `keep` checkpoints up to `newest`; those of later steps, from before a resume, do not count."""
    saved = sorted(folder for folder in newest.parent.glob("step-*") if folder.name <= newest.name)
    for folder in saved[:-keep] if keep else []:
        shutil.rmtree(folder)
