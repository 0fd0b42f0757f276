"""Vectors on disk, in parts that are whole or not there, with the key of each.

FOLDER/vectors.json             what they were made from; a part of another making is never mixed in
FOLDER/part-00000.npy           float32 [rows, dim], and part-00000.json beside it: keys and captions
FOLDER/part-00000.faults.json   items of the part that were skipped, by cause, where there are any
FOLDER/part-00000.parquet       the same in one file, where Parquet was asked for: key, caption, vector
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from navit_clip.data.faults import Faults
from navit_clip.errors import CheckpointError, ConfigError
from navit_clip.obstacles import obstacle_to
from navit_clip.weights import listing

DESCRIPTION = "vectors.json"
FAULTS = ".faults.json"
FileFormat = Literal["npy", "parquet"]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What vectors were made from."""

    model: str
    """A run, checkpoint or model folder, or a name on the hub; whatever it is called, the hashes tell."""
    weights: str
    """Hash of its weights: a run may have gone on since."""
    settings: str
    """Hash of its settings and tokenizer, without which equal weights do not make equal vectors."""
    precision: str
    """Of products and attention."""
    kind: Literal["images", "captions"]
    """What a vector stands for."""
    source: list[str]
    """Shards, a folder of images or a text file; absolute where they are files of this machine."""
    items: str
    """Hash of the items' keys, and of captions: a source may have changed since."""
    caption_key: str | None
    """Where shards have captions; of images none."""
    tokens_per_image: int | None
    """Patches of an image at most; of captions none."""
    num_items: int
    """Items in the source, those that turn out to be bad among them."""
    part_size: int
    """Items in a part."""
    dim: int
    """Length of a vector."""
    format: FileFormat
    """Of the parts."""

    def __post_init__(self):
        if least := [name for name in ("num_items", "part_size", "dim") if not getattr(self, name) >= 1]:
            raise ValueError(f"expected at least 1 as {' and '.join(least)}")

    @property
    def num_parts(self) -> int:
        return -(-self.num_items // self.part_size)


SAID = {
    "model": "they were made by {}, not {}",
    "weights": "the model's weights have changed since",
    "settings": "the model's settings or tokenizer have changed since",
    "precision": "they were made in {}, not {}",
    "kind": "they are of {}, not {}",
    "source": "they are of {}, not of {}",
    "items": "what is in the source has changed since",
    "caption_key": "captions were taken from {}, not {}",
    "tokens_per_image": "images had at most {} patches, not {}",
    "num_items": "there were {} items, not {}",
    "part_size": "parts have {} items, not {}",
    "dim": "vectors have {} values, not {}",
    "format": "they are kept as {}, not {}",
}
"""What each difference in a description means, with what is there and what was asked for."""

OF_ANOTHER_SOURCE = {
    "kind": ("source", "items", "caption_key", "tokens_per_image", "num_items"),
    "source": ("items", "num_items"),
    "caption_key": ("items", "num_items"),
}
"""What differs of itself where this does, and says nothing more."""


def differences(found: Description, expected: Description) -> list[str]:
    """In words, in what two descriptions differ that bears on vectors."""
    there, asked = asdict(found), asdict(expected)
    differing = [name for name in SAID if there[name] != asked[name] and name != "model"]
    implied = {name for cause in differing for name in OF_ANOTHER_SOURCE.get(cause, ())}
    if found.model != expected.model and {"weights", "settings"} & {*differing}:
        implied |= {"weights", "settings"}
        differing = ["model", *differing]
    return [
        SAID[name].format(_shown(there[name]), _shown(asked[name]))
        for name in differing
        if name not in implied
    ]


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


class Vectors(NamedTuple):
    """Rows with their keys."""

    keys: list[str]
    captions: list[str]
    """What each vector of a caption says; empty strings for images."""
    rows: Float32[np.ndarray, "rows dim"]


def begin(folder: Path, description: Description) -> None:
    """Makes the folder, or goes on in one that was begun alike.

    Raises:
        ConfigError: what is there was made from something else (says what differs), or the folder cannot be
            made.
        CheckpointError: what is there cannot be read.
    """
    path = folder / DESCRIPTION
    if path.exists():
        if differing := differences(read_description(folder), description):
            raise ConfigError(
                f"{folder}: holds vectors of another making: {'; '.join(differing)}. Choose another "
                "folder, or remove this one"
            )
        return
    check_place(folder)
    partial = path.with_name(f".{path.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(description), indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8")
        partial.rename(path)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error


def check_place(folder: Path) -> None:
    """Raises ConfigError where vectors cannot come to be: something else is there, or nothing can be."""
    begun = f".{DESCRIPTION}"  # by a run that was killed as it wrote it
    if (folder / DESCRIPTION).exists():
        return
    if folder.exists() and (not folder.is_dir() or any(path.name != begun for path in folder.iterdir())):
        raise ConfigError(
            f"{folder}: expected a folder of vectors to go on with, or nothing, found {listing(folder)}"
        )
    if obstacle := obstacle_to(folder):
        raise ConfigError(f"{folder}: cannot come to be there: {obstacle}")


def read_description(folder: Path) -> Description:
    """What the vectors of a folder were made from.

    Raises:
        CheckpointError: it is not a folder of vectors.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        found = listing(folder) if folder.exists() else "no such folder"
        raise CheckpointError(
            f"{folder}: expected a folder of vectors, with a {DESCRIPTION}, as `navit-clip embed` makes "
            f"them; found {found}"
        )
    try:
        return Description(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a description of vectors: {error}") from error


def missing_parts(folder: Path, description: Description) -> list[int]:
    """Numbers of the parts that are yet to be made."""
    return [
        number for number in range(description.num_parts) if not _path(folder, number, description).exists()
    ]


def write_part(folder: Path, number: int, vectors: Vectors, faults: Faults, description: Description) -> None:
    """Writes a part and what was skipped in it; its last rename makes it whole."""
    path = _path(folder, number, description)
    skipped = path.with_suffix(FAULTS)
    skipped.unlink(missing_ok=True)
    if faults.total:
        said = {"counts": faults.counts, "examples": faults.examples}
        skipped.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    partial = path.with_name(f".{path.name}")
    if description.format == "parquet":
        _write_parquet(partial, vectors)
    else:
        names = {"keys": vectors.keys, "captions": vectors.captions}
        path.with_suffix(".json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
        with partial.open("wb") as file:
            np.save(file, vectors.rows)
    partial.rename(path)


def read_faults(folder: Path, description: Description) -> Faults:
    """What was skipped in all parts.

    Raises:
        CheckpointError: what is there cannot be read.
    """
    faults = Faults()
    for number in range(description.num_parts):
        path = _path(folder, number, description).with_suffix(FAULTS)
        if not path.exists():
            continue
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            faults.counts.update(said["counts"])
            faults.examples = {**said["examples"], **faults.examples}
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise CheckpointError(f"{path}: not a count of skipped items: {error}") from error
    return faults


def read_vectors(folder: Path) -> Vectors:
    """All parts, in order.

    Raises:
        CheckpointError: parts are missing, or cannot be read; names them.
    """
    description = read_description(folder)
    if missing := missing_parts(folder, description):
        raise CheckpointError(
            f"{folder}: {len(missing)} of {description.num_parts} parts are missing; embed again to go on"
        )
    parts, broken = [], []
    for number in range(description.num_parts):
        path = _path(folder, number, description)
        try:
            parts.append(_read_part(path, description))
        except (OSError, EOFError, ValueError, TypeError, LookupError) as error:
            broken.append(f"{path.name} ({error})")
    if broken:
        raise CheckpointError(
            f"{folder}: parts that are broken: {'; '.join(broken)}; remove them and embed again"
        )
    keys, captions, rows = zip(*parts, strict=True)
    return Vectors(list(chain(*keys)), list(chain(*captions)), np.concatenate(rows))


def _read_part(path: Path, description: Description) -> Vectors:
    vectors = (_read_parquet if description.format == "parquet" else _read_npy)(path)
    expected = (len(vectors.keys), description.dim)
    if vectors.rows.shape != expected or len(vectors.captions) != len(vectors.keys):
        raise ValueError(f"expected {expected[0]} vectors of {expected[1]}, found {vectors.rows.shape}")
    return vectors


def check_format(name: FileFormat) -> None:
    """Raises ConfigError where Parquet is asked for and pyarrow is not there."""
    if name == "parquet":
        _pyarrow()


def _path(folder: Path, number: int, description: Description) -> Path:
    return folder / f"part-{number:05d}.{description.format}"


def _read_npy(path: Path) -> Vectors:
    names = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return Vectors(names["keys"], names["captions"], np.load(path, allow_pickle=False))


def _write_parquet(path: Path, vectors: Vectors) -> None:
    arrow, parquet = _pyarrow()
    rows = arrow.FixedSizeListArray.from_arrays(vectors.rows.reshape(-1), vectors.rows.shape[1])
    parquet.write_table(arrow.table({"key": vectors.keys, "caption": vectors.captions, "vector": rows}), path)


def _read_parquet(path: Path) -> Vectors:
    _, parquet = _pyarrow()
    table = parquet.read_table(path)
    column = table["vector"].combine_chunks()
    rows = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return Vectors(table["key"].to_pylist(), table["caption"].to_pylist(), rows)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "--format parquet: needs pyarrow: pip install 'navit-clip[parquet]', or use npy"
        ) from None
    return pyarrow, pyarrow.parquet
