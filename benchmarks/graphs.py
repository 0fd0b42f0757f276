"""How many graphs torch.compile makes, and whether it makes more after the first time."""

from __future__ import annotations

from collections.abc import Callable

import torch


class CountedGraphs:
    """Something to run, and what was compiled in its first run and in all later ones."""

    def __init__(self, run: Callable[[], object]):
        self._run = run
        self._runs = 0
        self.first = self.later = 0

    def __call__(self) -> None:
        before = _so_far()
        self._run()
        made = _so_far() - before
        if self._runs:
            self.later += made
        else:
            self.first = made
        self._runs += 1

    @property
    def row(self) -> dict[str, int]:
        return {"graphs": self.first, "recompilations": self.later}


def _so_far() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
