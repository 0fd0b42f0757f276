"""Rows of one part, each written as soon as it is there: one that fails, or comes too late, is lost alone."""

from __future__ import annotations

import gc
import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Measure = Callable[[], dict[str, Any]]


def write_rows(path: Path, measures: Mapping[str, Measure]) -> int:
    """Measures one after the other, each on a GPU that is free of the last; 1 where one failed, else 0."""
    rows: list[dict[str, Any]] = []
    for name, measure in measures.items():
        rows.append({"name": name, **_measured(measure)})
        gc.collect()  # engines hold themselves in cycles
        torch.cuda.empty_cache()
        path.write_text(json.dumps(rows, indent=2) + "\n")
        print(json.dumps(rows[-1], indent=2), flush=True)
    return int(any("failed" in row for row in rows))


def _measured(measure: Measure) -> dict[str, Any]:
    try:
        return measure()
    except Exception as error:  # whatever it is: the row says so, and the part's exit code
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}".split("\n")[0]}
