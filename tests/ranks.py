"""Runs a function on several ranks: real processes, gloo on loopback."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from navit_clip.distributed import World


def on_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(world, *args)` returned on each rank; it and its arguments must pickle."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    multiprocessing.spawn(_rank, args=(size, port, results, function, args), nprocs=size, join=True)
    return [value for _, value in sorted((results.get() for _ in range(size)), key=lambda item: item[0])]


def _rank(rank: int, size: int, port: int, results: Any, function: Callable[..., Any], args: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    # pytest's own filters do not reach a new process; what libraries do among themselves is theirs.
    warnings.filterwarnings("error", category=FutureWarning, module="navit_clip|training|eval")
    with World.join() as world:
        results.put((rank, function(world, *args)))
