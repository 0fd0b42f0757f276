"""Checkpoints: a whole folder per saved step, and a file that names the latest.

    RUN/checkpoints/latest               the name of the newest folder
    RUN/checkpoints/step-00001000/
      model/                             weights, config, tokenizer: what evaluation and export read
      weights.safetensors                the weights in training, where model/ holds their average
      moments.safetensors                what the optimizer remembers of each weight
      run.json                           step, pairs, every rank's place in the data, the size and digest
                                         of every file and of the record itself
    RUN/checkpoints/given-up-00002000/   what a run had come to before it went back to an earlier step

Weights and moments are whole, each under its own name, so that a run may go on at any number of ranks and any
ZeRO stage; nothing is pickled. A folder is written beside its place, forced to the disk, and renamed into it;
`latest` is replaced after that: whatever moment a run is killed at, what is named there is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, ConfigError
from navit_clip.model import ClipConfig
from navit_clip.tokenizer import Tokenizer
from navit_clip.weights import save_weights
from training.engine import Engine, EngineState

LATEST = "latest"
RECORD = "run.json"
MOMENTS = "moments.safetensors"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep. A run always saves when it ends or is asked to stop."""

    every: int = 1000
    """Steps between checkpoints."""
    keep: int = 3
    """Newest checkpoints that stay; 0 keeps all."""
    keep_every: int = 0
    """Checkpoints of steps that this divides stay, too; 0 for none."""

    def __post_init__(self):
        if self.every < 1:
            raise ConfigError(f"every: expected at least 1, found {self.every}")
        for name in ("keep", "keep_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Steps taken, those skipped among them."""
    pairs: int = 0
    """Pairs trained on, over all ranks."""
    skipped: int = 0
    """The latest of these steps, in a row, whose gradient was not finite."""


class CheckpointWriter:
    """Saves a run's checkpoints, one after the other, while the run goes on.

    Only the copy of the state into the main rank's memory is waited for. Use it in a `with`: its end waits
    for what is still being written.

    Args:
        run: the run's folder.
        config: what to keep.
        model_config: goes into model/.
        tokenizer: goes into model/.
        world: the ranks.
        say: told of each checkpoint that is whole, on the main rank.
        when_lost: called where a checkpoint could not be written, on the main rank, by the thread that
            writes; the next `save` says why.
    """

    def __init__(
        self,
        run: Path,
        config: CheckpointConfig,
        model_config: ClipConfig,
        tokenizer: Tokenizer,
        world: World,
        say: Callable[[str], None],
        when_lost: Callable[[], None] = lambda: None,
    ):
        self._folder = run / "checkpoints"
        self._config = config
        self._model_config = model_config
        self._tokenizer = tokenizer
        self._world = world
        self._say = say
        self._when_lost = when_lost
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._thread:
            self.wait()

    def save(self, progress: Progress, engine: Engine, loader_state: Any) -> None:
        """Saves the run as it is after a step; all ranks call it together.

        Raises:
            CheckpointError: the checkpoint before could not be written; says why, and which one is whole. On
                all ranks.
        """
        lost: CheckpointError | None = None
        try:
            self.wait()
        except CheckpointError as error:
            lost = error
        if (lost := self._world.gather_objects(lost)[0]) is not None:
            raise lost
        state = engine.state()
        record = {
            "step": progress.step,
            "pairs": progress.pairs,
            "skipped": progress.skipped,
            "optimizer_steps": state.optimizer_steps,
            "world_size": self._world.size,
            "zero_stage": engine.config.zero_stage,
            "loaders": self._world.gather_objects(loader_state),
        }
        if self._world.is_main:
            self._pending = self._thread.submit(self._write, record, state)

    def wait(self) -> None:
        """Until the last checkpoint is on the disk.

        Raises:
            CheckpointError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def last_whole(self) -> str:
        """The newest checkpoint, once what is being written is on the disk; all ranks call it together."""
        self.wait()
        self._world.barrier()
        return self._latest()

    def _latest(self) -> str:
        name = self._folder / LATEST
        return str(self._folder / name.read_text().strip()) if name.exists() else "none"

    def _write(self, record: dict[str, Any], state: EngineState) -> None:
        folder = self._folder / f"step-{record['step']:08d}"
        partial = folder.with_name(f".{folder.name}.partial")
        for stale in self._folder.glob(".step-*.partial"):  # left by a run that was killed while saving
            shutil.rmtree(stale)
        try:
            partial.mkdir(parents=True)
            model = state.average or state.weights
            save_weights(model, self._model_config, self._tokenizer, partial / "model")
            if state.average:
                save_file(dict(state.weights), partial / WEIGHTS)
            save_file(dict(state.moments), partial / MOMENTS)
            (partial / RECORD).write_text(sealed({**record, "files": _manifest(partial)}))
            _force_to_disk(partial)
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed before naming it
            partial.rename(folder)
            name_latest(folder)
        except Exception as error:  # safetensors has its own for a full disk
            shutil.rmtree(partial, ignore_errors=True)
            self._when_lost()
            raise CheckpointError(
                f"{folder}: could not be saved: {error}; the last whole checkpoint is {self._latest()}"
            ) from error
        self._discard_old(folder)
        self._say(f"saved {folder}")

    def _discard_old(self, newest: Path) -> None:
        """Of the checkpoints up to `newest`. One that cannot be removed is said, and tried again."""
        saved = sorted(folder for folder in self._folder.glob("step-*") if folder.name <= newest.name)
        keep, keep_every = self._config.keep, self._config.keep_every
        for folder in saved[:-keep] if keep else []:
            step = int(folder.name.removeprefix("step-"))
            if not keep_every or step % keep_every:
                try:
                    shutil.rmtree(folder)
                except OSError as error:
                    self._say(f"{folder}: could not be removed: {error}")


def go_back_to(folder: Path) -> None:
    """Makes a checkpoint the run's latest, and gives up the later ones: no part of the run any more."""
    name_latest(folder)
    for later in sorted(folder.parent.glob("step-*")):
        if later.name > folder.name:
            to = later.with_name(later.name.replace("step-", "given-up-"))
            shutil.rmtree(to, ignore_errors=True)  # of an earlier time that the run went back
            later.rename(to)


def sealed(record: dict[str, Any]) -> str:
    """A record as JSON, with a digest of all of it."""
    plain = json.loads(json.dumps(record))
    return json.dumps({**plain, "digest": _digest_of(plain)})


def opened(text: str) -> dict[str, Any]:
    """The record that was sealed.

    Raises:
        ValueError: it is not as it was written.
    """
    record = json.loads(text)
    if not isinstance(record, dict) or record.pop("digest", None) != _digest_of(record):
        raise ValueError("not as it was written")
    return record


def name_latest(folder: Path) -> None:
    """Makes a checkpoint the run's latest: a reader sees the old name or the new one, never half."""
    partial = folder.with_name(f".{LATEST}.partial")
    with partial.open("w") as file:
        file.write(folder.name)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder.with_name(LATEST))
    _fsync(folder.parent)


def digest(file: Path) -> str:
    """Of a file's contents, to notice what a disk or a copy did to it."""
    found = hashlib.blake2b(digest_size=16)
    with file.open("rb") as contents:
        while part := contents.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _digest_of(record: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _manifest(folder: Path) -> dict[str, list[Any]]:
    """Size and digest of every file, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): [path.stat().st_size, digest(path)] for path in files}


def _force_to_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
