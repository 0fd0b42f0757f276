"""JSON lines: files that are written row by row, and read by one rule.

A line ends at "\\n" and nowhere else: str.splitlines would end one inside a string, at U+2028. The last line
may be no JSON, where a writer was killed in it, or still writes it: it is left out. Any other line that is no
object is an error, and never skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from navit_clip.errors import DataError


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, one JSON object a line; empty lines say nothing.

    Raises:
        DataError: the file cannot be read, or a line before the last is not JSON, or one is no object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    rows = []
    for place, (number, line) in enumerate(numbered, start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # not UTF-8, among others
            if place == len(numbered):
                break
            raise DataError(
                f"{path}, line {number}: expected a JSON object, found {_found(line)}: {error}"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, found {_found(line)}")
        rows.append(row)
    return rows


def _found(line: bytes, most: int = 40) -> str:
    """The beginning of a line, for an error's message."""
    text = line[:most].decode("utf-8", errors="replace").strip()
    return repr(text + ("…" if len(line) > most else ""))
