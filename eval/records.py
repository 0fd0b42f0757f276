"""Files of results: JSON lines, one per model, data set and protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from navit_clip.errors import ConfigError, DataError
from navit_clip.file_lock import locked
from navit_clip.json_lines import read_json_lines
from navit_clip.obstacles import obstacle_to

Record = dict[str, Any]

LOCK_FILE = ".results.lock"
"""Held while a file of its folder is written."""

IDENTITY = ("dataset", "model", "pretrained", "task", "language", "protocol")
"""What tells results apart; of two that agree in all of it, the later stays."""

NEEDED = ("dataset", "model", "task", "metrics", "chance", "num_samples", "notes")
"""What every result has that a table shows."""


def read_records(path: Path) -> list[Record]:
    """The results of a file: JSON lines, or one JSON object over several lines.

    Raises:
        DataError: it is neither, or holds something other than results.
    """
    records = _one_object(path) or read_json_lines(path)
    for number, record in enumerate(records, start=1):
        if missing := [name for name in NEEDED if name not in record]:
            raise DataError(
                f"{path}: expected results as `navit-clip eval` writes them; number {number} has no "
                f"{', no '.join(missing)}"
            )
    return records


def _one_object(path: Path) -> list[Record]:
    """A file that is one JSON object; nothing where it is anything else, or cannot be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [record] if isinstance(record, dict) else []


def write_record(record: Record, path: Path) -> None:
    """Adds a result to a file, in place of an earlier one of the same model, data set and protocol.

    Several evaluations may end at once: each waits for the others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(LOCK_FILE)):
        earlier = read_records(path) if path.exists() else []
        records = [other for other in earlier if _identity(other) != _identity(record)] + [record]
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(lines, encoding="utf-8")
        partial.rename(path)


def check_writable(path: Path, flag: str) -> None:
    """Whether a file can come to be: an evaluation that takes hours is not to be lost at its end.

    Raises:
        ConfigError: the file cannot be written.
    """
    if obstacle := f"{path} is a folder" if path.is_dir() else obstacle_to(path.parent):
        raise ConfigError(f"{flag}: {path} cannot be written: {obstacle}")


def _identity(record: Mapping[str, Any]) -> list[str]:
    return [json.dumps(record.get(name), sort_keys=True) for name in IDENTITY]
