"""Files of results: JSON lines, one per model, data set and protocol."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from navit_clip.errors import ConfigError, DataError

Record = dict[str, Any]

IDENTITY = ("dataset", "model", "pretrained", "task", "language", "protocol")
"""What tells results apart; of two that agree in all of it, the later stays."""


def read_records(path: Path) -> list[Record]:
    """The results of a file: JSON lines, or one JSON object over several lines.

    Raises:
        DataError: it is neither.
    """
    text = path.read_text(encoding="utf-8")
    try:
        records = [json.loads(text)] if text.startswith("{\n") else [json.loads(r) for r in text.splitlines()]
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from error
    if not all(
        isinstance(record, dict) and {"dataset", "task", "metrics"} <= set(record) for record in records
    ):
        raise DataError(f"{path}: expected results as `navit-clip eval` writes them")
    return records


def write_record(record: Record, path: Path) -> None:
    """Adds a result to a file, in place of an earlier one of the same model, data set and protocol."""
    earlier = read_records(path) if path.exists() else []
    records = [other for other in earlier if _identity(other) != _identity(record)] + [record]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    partial.rename(path)


def check_writable(path: Path, flag: str) -> None:
    """Makes the folder of a file to be; an evaluation may take hours, and is not to be lost at its end.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag}: {path} cannot be written: {error.strerror}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{flag}: {path} cannot be written: it is a folder, or in a read-only one")


def _identity(record: Mapping[str, Any]) -> list[str]:
    return [json.dumps(record.get(name), sort_keys=True) for name in IDENTITY]
