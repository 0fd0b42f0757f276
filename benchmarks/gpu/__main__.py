"""`python -m benchmarks.gpu PART`: what benchmarks/gpu.sh calls, and the table of all that was found."""

from __future__ import annotations

import argparse
import json
import re
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
GROUPS = ("dependencies", "dev", "peers")


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.part == "missing":
        print("\n".join(missing()))
    elif arguments.part == "table":
        print(table(arguments.folder))
    else:
        return run(arguments.folder, arguments.sizes)
    return 0


def run(folder: Path, sizes: list[str]) -> int:
    """Kernels, steps and a run with its loader, a JSON file each; one that fails does not end the others."""
    from benchmarks.gpu.kernels import kernel_rows
    from benchmarks.gpu.overlap import overlap_rows
    from benchmarks.gpu.training_step import step_rows
    from navit_clip.distributed import World

    failed = 0
    with World.join() as world:
        parts: dict[str, Callable[[], list[dict[str, Any]]]] = {"kernels": kernel_rows}
        for size in sizes:
            parts[f"step-{size}"] = lambda size=size: step_rows(size, world)
        parts["overlap"] = lambda: overlap_rows(sizes[0], world)
        for name, rows_of in parts.items():
            try:
                rows = rows_of()
            except Exception:
                traceback.print_exc()
                print(f"FAILED: {name}")
                failed += 1
                continue
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
            print(name, json.dumps(rows, indent=2), flush=True)
    return 1 if failed else 0


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


def table(folder: Path) -> str:
    """All that was found, a line each."""
    lines = ["", "| part | what | found |", "|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text()):
            found = ", ".join(f"{name} {_short(value)}" for name, value in row.items() if name != "name")
            lines.append(f"| {path.stem} | {row['name']} | {found} |")
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
    parser.add_argument("part", choices=["missing", "run", "table"])
    parser.add_argument("folder", nargs="?", type=Path, help="where JSON files go, or are")
    parser.add_argument("sizes", nargs="*", help="of both towers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
