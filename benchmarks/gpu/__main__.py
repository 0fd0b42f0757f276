"""`python -m benchmarks.gpu PART`: one part of benchmarks/gpu.sh, or the table of all.

Parts import what they need themselves, so that a machine that lacks a package runs the others.
"""

from __future__ import annotations

import argparse
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent.parent
GROUPS = ("dependencies", "dev", "peers")


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.part == "missing":
        print("\n".join(missing()))
    elif arguments.part == "sizes":
        print("b16 l16" if torch.cuda.is_available() else "tiny")
    elif arguments.part == "table":
        print(table(arguments.folder))
    else:
        rows = run(arguments)
        print(json.dumps(rows, indent=2))
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one part."""
    if arguments.part == "kernels":
        from benchmarks.gpu.kernels import kernel_rows

        return kernel_rows()
    if arguments.part == "step":
        from benchmarks.gpu.training_step import step_rows

        return step_rows(arguments.size)
    from benchmarks.gpu.overlap import overlap_rows

    return overlap_rows(arguments.size)


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
    parser.add_argument("part", choices=["missing", "sizes", "kernels", "step", "overlap", "table"])
    parser.add_argument("folder", nargs="?", type=Path, help="of JSON files, for the table")
    parser.add_argument("--size", default="tiny", help="of both towers")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    return parser


if __name__ == "__main__":
    main()
