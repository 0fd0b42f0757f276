"""The weights in a folder that others wrote, read without running anything that is in it.

safetensors files are read, in one piece or in shards under an index. Pickled files (.bin, .pt, .pth) can run
code when they are read, so they are refused unless they are asked for, and then only tensors are unpickled.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from navit_clip.errors import CheckpointError

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
SHARD_INDEX = ".index.json"


def missing_weights(folder: Path, names: Sequence[str]) -> list[str]:
    """Files of a folder's weights that are not there; none where they are pickled.

    Args:
        folder: where to look.
        names: file names without their endings, such as "model"; the first that is there counts.

    Raises:
        CheckpointError: an index of shards is broken.
    """
    for name in names:
        whole, index = _places(folder, name)
        if whole.exists():
            return []
        if index.exists():
            return [shard for shard in _shards(index) if not (folder / shard).exists()]
    return [] if _pickled(folder) else [" or ".join(f"{name}.safetensors" for name in names)]


def read_weights(folder: Path, names: Sequence[str], allow_pickle: bool) -> dict[str, Tensor]:
    """A folder's weights.

    Args:
        folder: where to look.
        names: file names without their endings, such as "model"; the first that is there is read.
        allow_pickle: read a pickled file where there is no safetensors file, tensors alone.

    Raises:
        CheckpointError: there are no weights, or only pickled ones; files are missing or broken, all of which
            are listed.
    """
    if missing := missing_weights(folder, names):
        raise CheckpointError(f"{folder}: not whole: there is no {', '.join(missing)} in it")
    for name in names:
        whole, index = _places(folder, name)
        if whole.exists():
            return _read_safetensors([whole])
        if index.exists():
            return _read_safetensors([folder / shard for shard in _shards(index)])
    pickled = _pickled(folder)
    if not allow_pickle:
        raise CheckpointError(
            f"{folder}: its weights are pickled ({', '.join(path.name for path in pickled)}), and reading a "
            "pickle can run code; look for a safetensors file, or allow it with --allow-pickle, which reads "
            "tensors alone"
        )
    if len(pickled) > 1:
        raise CheckpointError(
            f"{folder}: expected one pickled file, found {', '.join(path.name for path in pickled)}"
        )
    return _read_pickle(pickled[0])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is absent or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: there is no {path.name} in it") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _places(folder: Path, name: str) -> tuple[Path, Path]:
    """Where weights in one piece are, and where the index of those in shards is."""
    return folder / f"{name}.safetensors", folder / f"{name}.safetensors{SHARD_INDEX}"


def _pickled(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in PICKLED)


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
