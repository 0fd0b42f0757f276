"""Finding a checkpoint to go on from, making sure that it is whole, and going on from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from navit_clip.config import load_config
from navit_clip.data import TrainLoader, deal_again
from navit_clip.distributed import World
from navit_clip.errors import CheckpointError
from navit_clip.model import ClipConfig, TwoTowers
from navit_clip.tokenizer import Tokenizer, load_tokenizer, same_tokenizer
from navit_clip.weights import CONFIG_FILE, TOKENIZER_FOLDER, WEIGHTS_FILE, config_differences
from training.checkpoint import LATEST, MOMENTS, RECORD, WEIGHTS, Progress, digest, opened
from training.engine import Engine, EngineState

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is whole."""

    folder: Path
    record: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Reads every file once.

        Raises:
            CheckpointError: it is not whole: says which file is missing or not as it was written.
        """
        try:
            record = opened((folder / RECORD).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(f"{folder}: not a checkpoint: there is no {RECORD} in it") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: not whole: {RECORD}: {error}") from error
        for name, (size, expected) in record["files"].items():
            file = folder / name
            try:
                as_written = file.stat().st_size == size and digest(file) == expected
            except FileNotFoundError:
                raise CheckpointError(f"{folder}: not whole: there is no {name} in it") from None
            except OSError as error:
                raise CheckpointError(f"{folder}: not whole: {name}: {error}") from error
            if not as_written:
                raise CheckpointError(f"{folder}: not whole: {name} is not as it was written")
        return cls(folder, record)

    @property
    def progress(self) -> Progress:
        # Older checkpoints do not tell of skipped steps.
        return Progress(self.record["step"], self.record["pairs"], self.record.get("skipped", 0))

    def check_fits(self, model: ClipConfig, tokenizer: Tokenizer) -> None:
        """Raises CheckpointError, naming what differs, where it is of another model or tokenizer."""
        found = load_config(ClipConfig, self.folder / "model" / CONFIG_FILE)
        if differences := list(config_differences(found, model, "model")):
            raise CheckpointError(f"{self.folder}: a checkpoint of another model: {'; '.join(differences)}")
        own = self.folder / "model" / TOKENIZER_FOLDER
        if not same_tokenizer(load_tokenizer(own), tokenizer):
            raise CheckpointError(
                f"{self.folder}: saved by a run with another tokenizer, so its text tower would read other "
                f"words; set tokenizer={own}"
            )

    def load_weights(self, model: TwoTowers) -> None:
        """Gives a model, not yet in an engine, the weights in training."""
        averaged = (self.folder / WEIGHTS).exists()
        model.load_state_dict(load_file(self.folder / (WEIGHTS if averaged else f"model/{WEIGHTS_FILE}")))

    def restore(self, engine: Engine) -> None:
        """Gives an engine, whose model has the weights, what the optimizer and the average remember."""
        averaged = (self.folder / WEIGHTS).exists()
        engine.restore(
            EngineState(
                weights={},
                average=_Saved(self.folder / "model" / WEIGHTS_FILE) if averaged else {},
                moments=_Saved(self.folder / MOMENTS),
                optimizer_steps=self.record["optimizer_steps"],
            )
        )

    def place(self, loader: TrainLoader, num_workers: int, world: World) -> str:
        """Sets a rank's loader to where the run was; returns what there is to say about it.

        At another number of ranks or workers the samples left of the epoch are dealt again.
        """
        states = self.record["loaders"]
        streams = (len(states), len(states[0]["workers"]))
        if streams == (world.size, max(1, num_workers)):
            loader.load_state(states[world.rank])
            return ""
        loader.load_state(deal_again(states, world.size, num_workers)[world.rank])
        return f", its samples dealt again from {streams[0]} x {streams[1]} workers"


class _Saved(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for: no rank holds all that it needs a share of."""

    def __init__(self, file: Path):
        self._file = safe_open(file, framework="pt")
        self._names = set(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Found(NamedTuple):
    """What `--resume` means."""

    checkpoint: Checkpoint | None
    """None only for `auto` in a run that has none yet."""
    passed_over: list[str]
    """What `auto` did not take, each with the reason."""


def find_checkpoint(run: Path, asked: str, world: World) -> Found:
    """Looks and reads on the main rank, and tells the others.

    Args:
        run: the run's folder.
        asked: `latest` of the run; `auto`, the newest that is whole, or none where there is no checkpoint at
            all; or a checkpoint's folder.
        world: the ranks; all call this together.

    Raises:
        CheckpointError: there is none, or it is not whole; for `auto`, none of those that there are is.
    """
    return world.from_main(lambda: _find(run, asked))


def _find(run: Path, asked: str) -> Found:
    if asked not in (LATEST, AUTO):
        if not Path(asked).exists():
            close = "".join(
                f"; did you mean {word}?" for word in get_close_matches(asked, (LATEST, AUTO), n=1)
            )
            raise CheckpointError(
                f"{asked}: expected latest, auto or a checkpoint, found no such folder{close}"
            )
        return Found(Checkpoint.open(Path(asked)), [])
    checkpoints = run / "checkpoints"
    passed_over: list[str] = []
    named = None
    if (latest := checkpoints / LATEST).exists():
        named = latest.read_text(errors="replace").strip()
        if not named or not (checkpoints / named).is_dir():
            passed_over.append(f"{latest}: names no checkpoint: {named!r}")
            named = None
    if asked == LATEST:
        if named is None:
            reason = passed_over[0] if passed_over else f"there is no {latest}"
            raise CheckpointError(f"{run}: nothing to resume: {reason}")
        return Found(Checkpoint.open(checkpoints / named), [])
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        if named is not None and folder.name > named:
            passed_over.append(f"{folder}: later than {named}, the latest: given up, or never finished")
            continue
        try:
            return Found(Checkpoint.open(folder), passed_over)
        except CheckpointError as error:
            passed_over.append(str(error))
    if passed_over:
        raise CheckpointError(f"{run}: no checkpoint is whole: {'; '.join(passed_over)}")
    return Found(None, [])
