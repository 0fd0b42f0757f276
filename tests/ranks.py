"""Runs a function on several ranks: real processes, gloo on loopback.

They are forked from a server process that has imported what they need, once for a session of tests: a rank
starts in a moment, and with none of the threads of the process that the tests run in.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from navit_clip.distributed import World


def on_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(world, *args)` returned on each rank; it and its arguments must pickle."""
    port, context = _free_port(), _context()
    results = context.SimpleQueue()
    ranks = multiprocessing.start_processes(
        _rank, (size, port, results, function, args), nprocs=size, join=False, start_method="forkserver"
    )
    by_rank: dict[int, Any] = {}
    done = False
    while not done:
        done = ranks.join(timeout=0.05)
        while not results.empty():  # a rank waits with a large result until it is read
            by_rank.update([results.get()])
    return [by_rank[rank] for rank in range(size)]


def exit_codes(size: int, function: Callable[..., int], *args: Any) -> list[int | None]:
    """What each rank's process ends with where `function(*args)`, which joins the ranks itself, is all of it.

    Minus the number of a signal, where it died of that.
    """
    port, context = _free_port(), _context()
    ranks = [
        context.Process(target=_process, args=(rank, size, port, function, args)) for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return [rank.exitcode for rank in ranks]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    # DeepSpeed's ZeRO decorates Muon with torch.compile, which imports the compiler: seconds in every rank.
    context.set_forkserver_preload(["training.train", "deepspeed.runtime.zero.muon.muon_optimizer"])
    return context


def _process(rank: int, size: int, port: int, function: Callable[..., int], args: Any) -> None:
    _take_place(rank, size, port)
    sys.exit(function(*args))


def _rank(rank: int, size: int, port: int, results: Any, function: Callable[..., Any], args: Any) -> None:
    _take_place(rank, size, port)
    # pytest's own filters do not reach a new process; what libraries do among themselves is theirs.
    warnings.filterwarnings("error", category=FutureWarning, module="navit_clip|training|eval")
    with World.join() as world:
        results.put((rank, function(world, *args)))


def _take_place(rank: int, size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
