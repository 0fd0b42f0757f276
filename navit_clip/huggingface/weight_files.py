"""The weights in a folder that others wrote, read without running anything that is in it.

safetensors files are read, in one piece or in shards under an index. Pickled files (.bin, .pt, .pth) can run
code when they are read, so they are refused unless they are asked for, and then only tensors are unpickled.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from navit_clip.errors import CheckpointError
from navit_clip.json_object import read_json

SAFE = ".safetensors"
PICKLED = [
    f"{name}{ending}"
    for name in ("open_clip_pytorch_model", "open_clip_model", "pytorch_model", "model")
    for ending in (".bin", ".pt", ".pth", ".ckpt")
]
"""What pickled weights are called; other files with these endings hold a trainer's arguments and the like."""
SHARD_INDEX = ".index.json"


def missing_weights(folder: Path, names: Sequence[str]) -> list[str]:
    """Files of a folder's weights that are not there.

    Args:
        folder: where to look.
        names: file names without `.safetensors`, such as "model"; the first that is there counts.

    Raises:
        CheckpointError: an index of shards is broken.
    """
    safe = [name + SAFE for name in names]
    files = _files(folder, safe) or _files(folder, PICKLED)
    return [file.name for file in files if not file.exists()] if files else [" or ".join(safe)]


def read_weights(folder: Path, names: Sequence[str], allow_pickle: bool) -> dict[str, Tensor]:
    """A folder's weights.

    Args:
        folder: where to look.
        names: file names without `.safetensors`, such as "model"; the first that is there is read.
        allow_pickle: read pickled weights where there are no safetensors, tensors alone.

    Raises:
        CheckpointError: there are no weights, or only pickled ones; files are missing or broken, all of which
            are listed.
    """
    if missing := missing_weights(folder, names):
        raise CheckpointError(f"{folder}: not whole: there is no {', '.join(missing)} in it")
    if files := _files(folder, [name + SAFE for name in names]):
        return _read_safetensors(files)
    pickled = _files(folder, PICKLED)
    if not allow_pickle:
        raise CheckpointError(
            f"{folder}: its weights are pickled ({', '.join(path.name for path in pickled)}), and reading a "
            "pickle can run code; look for a safetensors file, or allow it with --allow-pickle, which reads "
            "tensors alone"
        )
    return {name: weight for file in pickled for name, weight in _read_pickle(file).items()}


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Of the first name that is there: the file, or the shards that its index names, there or not."""
    for whole in (folder / name for name in names):
        index = whole.with_name(whole.name + SHARD_INDEX)
        if whole.exists():
            return [whole]
        if index.exists():
            return [folder / shard for shard in _shards(index)]
    return []


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: expected a weight_map from weights to files, found none")
    files = sorted({str(name) for name in weight_map.values()})
    # An index could name a file anywhere; a shard lies beside it.
    if outside := [name for name in files if Path(name).name != name or name in ("", "..")]:
        raise CheckpointError(f"{index}: names files outside its folder: {', '.join(outside)}")
    return files


def _read_safetensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    broken = []
    for path in paths:
        try:
            weights |= load_file(path)
        except (SafetensorError, OSError) as error:
            broken.append(f"{path.name} ({error})")
    if broken:
        raise CheckpointError(f"{paths[0].parent}: not readable as safetensors: {', '.join(broken)}")
    return weights


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # torch's own message advises to read it with everything that is in it.
        raise CheckpointError(
            f"{path}: not readable as tensors alone: it is broken, or holds what could run code"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a mapping from names to tensors, found something else")
    return {name.removeprefix("module."): weight for name, weight in content.items()}
