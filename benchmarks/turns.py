"""Things that take turns in one process, so that whatever else the machine does falls on all alike."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

Found = TypeVar("Found")

CPU = torch.device("cpu")
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the matrices: large enough that a machine multiplies none faster."""
PRODUCTS = 2
"""Of them in a turn, which a clock can tell apart."""


class Timing(NamedTuple):
    """What some turns took."""

    seconds: float
    """The median."""
    spread: float
    """The longest turn less the shortest, over the median."""
    yards: float
    """The median of a turn's seconds over those of the yardstick beside it; nan without one."""


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device = CPU,
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = True,
    yardstick: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Runs everything once to warm up, and then in turns, each round beginning with another.

    What one leaves in caches and in the allocator helps or hinders the next: that should not be one alone.

    Args:
        runs: what to time, by name.
        rounds: turns of each.
        device: what has to be idle before the clock is read.
        clock: seconds; `time.process_time` counts those of the CPU.
        warm: whether to warm up; runs of minutes need not.
        yardstick: what the machine itself can do, timed before and after every turn: its rate may change by a
            third from one minute to the next where other machines share its cores.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    yards: dict[str, list[float]] = {name: [] for name in runs}

    def yard() -> float:
        return math.nan if yardstick is None else _elapsed(yardstick, device, clock)

    for turn in range(rounds + warm):
        first = turn % len(runs)
        order = [*runs][first:] + [*runs][:first]
        before = yard()
        for name in order:
            elapsed, after = _elapsed(runs[name], device, clock), yard()
            if turn >= warm:
                seconds[name].append(elapsed)
                yards[name].append(elapsed / statistics.mean((before, after)))
            before = after
    return {
        name: Timing(
            statistics.median(times),
            (max(times) - min(times)) / statistics.median(times),
            statistics.median(yards[name]),
        )
        for name, times in seconds.items()
    }


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A large matrix product, a few times over, and the floating-point operations of all."""
    side = PRODUCT_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def products() -> None:
        for _ in range(PRODUCTS):
            _ = left @ right

    return products, PRODUCTS * 2.0 * side**3


def apart(function: Callable[..., Found], *arguments: object) -> Found:
    """What a function of a module returns in a process of its own; its arguments must pickle."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that a run takes at most, beyond those that are in use before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    before = resident("VmRSS")
    forget_high_water_mark()
    run()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A figure of this process's memory in bytes, by its name in /proc/self/status."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget_high_water_mark() -> None:
    """VmHWM starts anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def _elapsed(run: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    _wait(device)
    start = clock()
    run()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
