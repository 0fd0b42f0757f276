"""A function on several ranks: processes of their own, gloo on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.multiprocessing as multiprocessing
from torch.multiprocessing.spawn import start_processes

from navit_clip.distributed import World

Found = TypeVar("Found")


def on_ranks(
    num_ranks: int,
    function: Callable[..., Found],
    *arguments: Any,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
) -> list[Found]:
    """What `function(world, *arguments)` returned on each rank; all of it must pickle.

    Args:
        num_ranks: how many.
        function: of a module.
        arguments: its own.
        threads: of each rank.
        environment: variables that the processes start with.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    with _surroundings({**(environment or {}), "OMP_NUM_THREADS": str(threads)}):
        ranks = start_processes(
            _rank,
            (num_ranks, port, threads, results, function, arguments),
            nprocs=num_ranks,
            join=False,
            start_method="spawn",
        )
    assert ranks is not None  # they run beside this process
    while not ranks.join():
        pass
    by_rank = dict(results.get() for _ in range(num_ranks))
    return [by_rank[rank] for rank in range(num_ranks)]


def _rank(
    rank: int,
    num_ranks: int,
    port: int,
    threads: int,
    results: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    place = {"RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_RANK": 0, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(threads)
    with World.join() as world:
        results.put((rank, function(world, *arguments)))


@contextlib.contextmanager
def _surroundings(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that processes started inside inherit."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
