"""Files of results: JSON lines, one per model, data set and protocol."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from navit_clip.errors import ConfigError, DataError

Record = dict[str, Any]

LOCK_FILE = ".results.lock"
"""Held while a file of its folder is written."""

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
    """Adds a result to a file, in place of an earlier one of the same model, data set and protocol.

    Several evaluations may end at once: each waits for the others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        earlier = read_records(path) if path.exists() else []
        records = [other for other in earlier if _identity(other) != _identity(record)] + [record]
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(lines, encoding="utf-8")
        partial.rename(path)


def check_writable(path: Path, flag: str) -> None:
    """Whether a file can come to be; an evaluation may take hours, and is not to be lost at its end.

    Raises:
        ConfigError: the file cannot be written.
    """
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"{flag}: {path} cannot be written: it is a folder, or not in one, or in a read-only one"
        )


def _identity(record: Mapping[str, Any]) -> list[str]:
    return [json.dumps(record.get(name), sort_keys=True) for name in IDENTITY]
