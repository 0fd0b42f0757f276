"""What is checked before a run is built, so that a mistake costs seconds, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.tasks import check_tasks
from navit_clip.config import changed_settings
from navit_clip.data import find_shards
from navit_clip.errors import ConfigError, DataError, NavitClipError
from navit_clip.obstacles import obstacle_to
from navit_clip.run_settings import RUN_CONFIG_FILE, run_folder
from navit_clip.tokenizer import Tokenizer
from training.config import RunConfig
from training.lock import LOCK_FILE

WRITTEN = (RUN_CONFIG_FILE, "out.log", "metrics.jsonl", LOCK_FILE)
"""Files of a run's folder that are written again."""


def check_folder(run: Path) -> None:
    """Whether the run's folder is there or can be made.

    Raises:
        ConfigError: it cannot, or what is in it cannot be written.
    """
    obstacle = obstacle_to(run) or obstacle_to(run / "checkpoints")
    for file in filter(Path.exists, (run / name for name in WRITTEN)):
        try:
            file.open("a").close()
        except OSError as error:
            obstacle = obstacle or f"{file} cannot be written: {error.strerror}"
    if obstacle:
        raise ConfigError(f"folder: expected a place that a run can be written to, found {run}: {obstacle}")


def check_settings(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Whether what a run needs on its way is there: room for the tokens, shards and data sets to judge it on.

    Raises:
        ConfigError: a setting does not fit the tokenizer or a data set.
        DataError: a file is missing.
    """
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise ConfigError(
            f"model.text.vocab_size: expected at least {tokenizer.vocab_size}, the tokens of "
            f"{config.tokenizer}, found {config.model.text.vocab_size}"
        )
    if config.validation.data.shards:
        with naming("validation.data.shards", DataError):
            find_shards(config.validation.data.shards, config.data.remote)
    with naming("evaluation.tasks", ConfigError, DataError):
        check_tasks(config.evaluation.tasks, config.data.remote)


@contextmanager
def naming(setting: str, *kinds: type[NavitClipError]) -> Iterator[None]:
    """Says, in errors of these kinds, which setting it is that names what cannot be used."""
    try:
        yield
    except kinds as error:
        raise type(error)(f"{setting}: {error}") from error


def changes(checkpoint: Path, config: RunConfig) -> Iterator[str]:
    """Every setting that is not as the run that a checkpoint belongs to was started with."""
    if run := run_folder(checkpoint):
        yield from changed_settings(run / RUN_CONFIG_FILE, config)


def remarks(config: RunConfig, tokenizer: Tokenizer) -> Iterator[str]:
    """What is no error, and better known before a run than after it."""
    size, used = config.model.text.vocab_size, tokenizer.vocab_size
    if size > used:
        yield (
            f"model.text.vocab_size: {size}, and the tokenizer has {used} tokens: "
            f"{1 - used / size:.0%} of the token embedding is not used"
        )
    if config.optimizer.kind == "muon":
        yield "optimizer.kind: DeepSpeed compiles muon at the first step: 20 seconds and more on CPUs"
