"""`python -m benchmarks.gpu PART`: what benchmarks/gpu.sh calls, and the table of all that was found."""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
GROUPS = ("dependencies", "dev", "peers")


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.part == "missing":
        print("\n".join(missing()))
        return 0
    if arguments.part == "table":
        print(table(arguments.path, dict(part.split("=") for part in arguments.words)))
        return 0
    return run(arguments.part, arguments.path, *arguments.words)


def run(part: str, path: Path, size: str = "") -> int:
    """Writes a part's rows; the exit code says whether one failed. A part imports what it needs by itself."""
    from benchmarks.gpu.rows import write_rows

    if part == "kernels":
        from benchmarks.gpu.kernels import kernel_rows

        return write_rows(path, kernel_rows())

    from navit_clip.distributed import World

    if part == "steps":
        from benchmarks.gpu.training_step import step_rows as rows_of
    else:
        from benchmarks.gpu.overlap import overlap_rows as rows_of
    with World.join() as world:
        return write_rows(path, rows_of(size, world))


def missing() -> list[str]:
    """A line for each group of pyproject.toml's packages of which some are not installed."""
    project = (ROOT / "pyproject.toml").read_text()  # the standard library reads TOML from 3.11 on
    lines = []
    for group in GROUPS:
        (block,) = re.findall(rf"^{group} = \[(.*?)\]$", project, re.M | re.S)
        absent = [name for name in re.findall(r'"([\w.-]+)[^"]*"', block) if not _installed(name)]
        if absent:
            lines.append(f"not installed ({group}): {' '.join(absent)}")
    return lines or ["every package is installed"]


def table(folder: Path, statuses: dict[str, str]) -> str:
    """All that was found, a line each, and of parts that failed or leave no rows how their logs end.

    Args:
        folder: holds NAME.log and, but for the tests, NAME.json of every part.
        statuses: exit codes by name.
    """
    lines = ["", "| part | what | found |", "|---|---|---|"]
    for name, status in statuses.items():
        path = folder / f"{name}.json"
        rows = json.loads(path.read_text()) if path.exists() else []
        for row in rows:
            found = ", ".join(f"{key} {_short(value)}" for key, value in row.items() if key != "name")
            lines.append(f"| {name} | {row['name']} | {found} |")
        if status != "0" or not rows:
            log = (folder / f"{name}.log").read_text(errors="replace")
            last = log.strip().rpartition("\n")[2]
            lines.append(f"| {name} | exit code {status} | {last} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("part", choices=["missing", "kernels", "steps", "overlap", "table"])
    parser.add_argument("path", nargs="?", type=Path, help="where rows go; of the table, their folder")
    parser.add_argument("words", nargs="*", help="size of both towers; of the table, PART=EXIT_CODE of each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
