"""A model on disk: weights, config and tokenizer in one folder, nothing pickled.

    FOLDER/model.safetensors           every parameter under its own name
    FOLDER/navit_clip.yaml             the ClipConfig, every setting written out
    FOLDER/tokenizer/                  what `load_tokenizer` reads
    FOLDER/preprocessor_config.json    of an imported model, how many patches its images had

A folder appears whole or not at all: it is written beside its place and then renamed into it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from navit_clip.config import load_config, save_config
from navit_clip.errors import CheckpointError, ConfigError, with_faults
from navit_clip.image_settings import IMAGE_PROCESSOR_FILE, image_settings
from navit_clip.model import ClipConfig, Tower, TwoTowers
from navit_clip.obstacles import obstacle_to
from navit_clip.run_settings import RUN_CONFIG_FILE, RunSettings, run_folder
from navit_clip.tokenizer import Tokenizer, load_tokenizer

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "navit_clip.yaml"
TOKENIZER_FOLDER = "tokenizer"
RESULTS_FOLDER = "eval"
"""Where evaluations leave their results, in a run or beside a model."""

TOKENS_PER_IMAGE = 256
"""Patches of an image at most where neither the user nor the model says: SigLIP 2's number."""

MOST_NAMED = 8
"""How many weights or files an error names before it only counts them."""


class LoadedModel(NamedTuple):
    """What a model folder holds."""

    model: TwoTowers
    tokenizer: Tokenizer


def save_model(
    model: TwoTowers, tokenizer: Tokenizer, folder: Path, tokens_per_image: int | None = None
) -> None:
    """Writes a model folder; one that is already there is replaced.

    Args:
        model: on any device.
        tokenizer: what the text tower was trained with.
        folder: where to.
        tokens_per_image: patches of an image at most, for a model that belongs to no run which says so.

    Raises:
        CheckpointError: something other than a model folder is in the way.
    """
    save_weights(model.state_dict(), model.config, tokenizer, folder, tokens_per_image)


def save_weights(
    weights: Mapping[str, Tensor],
    config: ClipConfig,
    tokenizer: Tokenizer,
    folder: Path,
    tokens_per_image: int | None = None,
) -> None:
    """`save_model` for weights that were gathered from elsewhere than a whole model on one device."""
    with whole_folder(folder, replaces=is_model_folder) as partial:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(tensors, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        save_config(config, partial / CONFIG_FILE)
        tokenizer.save(partial / TOKENIZER_FOLDER)
        if tokens_per_image is not None:
            said = {"patch_size": config.image.patch_size, "max_num_patches": tokens_per_image}
            (partial / IMAGE_PROCESSOR_FILE).write_text(json.dumps(said, indent=2) + "\n")


@contextmanager
def whole_folder(folder: Path, replaces: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when all is written, and vanishes on an error.

    What evaluations have left in a folder that is replaced stays: results say which weights they are of.

    Args:
        folder: where it is to be.
        replaces: whether what is there already is a folder of the same kind, and may go.

    Raises:
        CheckpointError: something of another kind is in the way.
    """
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial")
    replaced = folder.with_name(f".{folder.name}.replaced")
    if replaced.exists() and not folder.exists():  # killed between the two renames below
        replaced.rename(folder)
    check_place(folder, replaces)
    _keep_results(replaced, folder)  # killed after them
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    readable = partial.stat().st_mode & 0o666  # safetensors keeps its files from everybody but their owner
    for file in filter(Path.is_file, partial.rglob("*")):
        file.chmod(readable)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    _keep_results(replaced, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def check_place(folder: Path, replaces: Callable[[Path], bool]) -> None:
    """Whether `whole_folder` can write there; for those who want to know before a model is loaded.

    Raises:
        CheckpointError: something of another kind is in the way, or nothing can be written there.
    """
    folder = folder.resolve()
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not replaces(folder):
        raise CheckpointError(
            f"{folder}: expected nothing there, or an earlier folder of the same kind to replace, "
            f"found {listing(folder)}"
        )
    if obstacle := obstacle_to(folder.parent):
        raise CheckpointError(f"{folder}: cannot come to be there: {obstacle}")


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is one of ours, which another model may replace."""
    return (folder / CONFIG_FILE).exists()


def _keep_results(replaced: Path, folder: Path) -> None:
    if (replaced / RESULTS_FOLDER).exists() and not (folder / RESULTS_FOLDER).exists():
        (replaced / RESULTS_FOLDER).rename(folder / RESULTS_FOLDER)


def load_model(folder: Path) -> LoadedModel:
    """Reads a model folder; the model is on the CPU, in float32, in evaluation mode.

    Raises:
        CheckpointError: a file is missing or unreadable, or the weights are not those that the config
            describes; the message lists what is missing, what is too much, and which shapes differ.
    """
    names = (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FOLDER)
    if missing := [name for name in names if not (folder / name).exists()]:
        raise CheckpointError(
            f"{folder}: not a whole model folder: there is no {', no '.join(missing)} in it"
        )
    try:
        config = load_config(ClipConfig, folder / CONFIG_FILE)
    except ConfigError as error:
        raise CheckpointError(f"the config of a model folder does not fit this version: {error}") from error
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: not readable as safetensors: {error}") from error
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    with torch.device("meta"):  # no memory and no random draws for weights that are replaced at once
        model = TwoTowers(config)
    check_weights(weights, model.state_dict(), where=str(folder / WEIGHTS_FILE))
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return LoadedModel(model.eval(), tokenizer)


def check_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Compares names, shapes and kinds of numbers, so that an error can say all that is wrong at once.

    Raises:
        CheckpointError: they differ.
    """
    faults = []
    if missing := [name for name in expected if name not in found]:
        faults.append(f"missing: {_listed(missing)}")
    if extra := [name for name in found if name not in expected]:
        faults.append(f"not of this model: {_listed(extra)}")
    shapes = [
        f"{name} (expected {list(expected[name].shape)}, found {list(found[name].shape)})"
        for name in expected
        if name in found and expected[name].shape != found[name].shape
    ]
    if shapes:
        faults.append(f"of another shape: {_listed(shapes)}")
    quantised = [
        f"{name} ({found[name].dtype})"
        for name in expected
        if name in found and expected[name].is_floating_point() > found[name].is_floating_point()
    ]
    if quantised:
        faults.append(f"expected floating-point numbers, found others: {_listed(quantised)}")
    if faults:
        raise CheckpointError(with_faults(f"{where}: weights of another model", faults))


def weights_hash(module: nn.Module) -> str:
    """A hash of all parameters and buffers, their names, shapes and types: equal weights, equal hash."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def copy_tower(source: TwoTowers, target: TwoTowers, tower: Tower, where: str) -> None:
    """Gives one model's tower the weights of another's.

    Raises:
        CheckpointError: the towers are not of one architecture; lists every setting and shape that differs.
    """
    differences = list(
        config_differences(getattr(source.config, tower), getattr(target.config, tower), tower)
    )
    if differences:
        raise CheckpointError(
            f"{where}: its {tower} tower does not fit this model's: {'; '.join(differences)}"
        )
    weights = getattr(source, tower).state_dict(prefix=f"{tower}.")
    check_weights(weights, getattr(target, tower).state_dict(prefix=f"{tower}."), where)
    getattr(target, tower).load_state_dict(getattr(source, tower).state_dict())


def config_differences(found: Any, expected: Any, prefix: str) -> Iterator[str]:
    """Every setting in which two configs of one dataclass differ, but for those that change no result."""
    for field in fields(expected):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        name = f"{prefix}.{field.name}"
        if is_dataclass(right):
            yield from config_differences(left, right, name)
        elif left != right and field.name != "checkpoint_blocks":
            yield f"{name} is {left} there and {right} here"


def resolve_model_folder(path: str | Path) -> Path:
    """The model folder that a path means: itself, a checkpoint's, or the latest checkpoint's of a run.

    Raises:
        CheckpointError: there is none; says what was looked for.
    """
    path = Path(path)
    if not path.is_dir():
        found = "found a file" if path.exists() else "no such folder"
        raise CheckpointError(f"{path}: {found} (expected a run, a checkpoint or a model folder)")
    if (path / CONFIG_FILE).exists():
        return path
    if (path / "model" / CONFIG_FILE).exists():
        return path / "model"
    latest = path / "checkpoints" / "latest"
    if latest.exists():
        model = latest.parent / latest.read_text().strip() / "model"
        if not (model / CONFIG_FILE).exists():
            raise CheckpointError(f"{latest}: names a checkpoint that has no model: there is no {model}")
        return model
    if (path / RUN_CONFIG_FILE).exists():
        raise CheckpointError(
            f"{path}: a run that has no checkpoint yet (there is no {latest}); it can be opened once "
            "training has written its first"
        )
    raise CheckpointError(
        f"{path}: expected a model folder ({CONFIG_FILE}), a checkpoint (model/) or a run with at least one "
        f"checkpoint (checkpoints/latest), found {listing(path)}"
    )


def usual_tokens(path: str | Path) -> int | None:
    """Patches of an image at most where the user does not say: one rule for evaluation, export and vectors.

    What the evaluations of a run have (its `evaluation.tokens_per_image`), or what a folder for transformers
    or of an imported model says of its images (`max_num_patches`); None for others.

    Raises:
        ConfigError: a run's config is not readable, or its number cannot be.
        CheckpointError: what a folder says of its images is not readable, or cannot be.
    """
    if run := run_folder(path):
        settings = RunSettings(run)
        tokens = settings.get("evaluation.tokens_per_image", int)
        if tokens is not None and tokens < 1:
            raise ConfigError(
                f"{settings.file}: evaluation.tokens_per_image: expected at least 1, found {tokens}"
            )
        if tokens is not None:
            return tokens
    settings = image_settings(Path(path)) or image_settings(Path(path) / "model")
    return settings.most_patches() if settings else None


def listing(path: Path) -> str:
    """What is at a path, for an error that expected something else there."""
    if not path.is_dir():
        return "a file"
    return _listed(sorted(entry.name for entry in path.iterdir())) or "an empty folder"


def _listed(names: list[str]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
