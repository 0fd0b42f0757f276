"""The ranks of a run, and the few exchanges between them that the towers' embeddings need.

Ranks hold different numbers of pairs (a packed batch has a budget of tokens, not of pairs), so every
exchange of rows takes uneven counts.
"""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from navit_clip.errors import ConfigError, NavitClipError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the ranks of a run."""

    rank: int
    size: int
    device: torch.device
    node: dist.ProcessGroup | None = None
    """The ranks of this one's node, which share its links; None where it is taken to be alone there."""

    @classmethod
    @contextmanager
    def join(cls) -> Iterator[World]:
        """Among the ranks that torchrun or deepspeed started, or in a world of one, until the block ends.

        Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. NCCL between GPUs, gloo between
        CPUs (and beside NCCL, for what lies on the host). A rank that fails leaves at once; the launcher
        then ends the others.

        Raises:
            ConfigError: several ranks are asked for, and there is no place for them to meet.
        """
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if size > 1 and "MASTER_ADDR" not in os.environ:
            raise ConfigError(
                f"WORLD_SIZE is {size} and MASTER_ADDR is not set: start ranks with torchrun or deepspeed, "
                "or unset WORLD_SIZE to run alone"
            )
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        alone = dist.HashStore() if size == 1 else None  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=alone, rank=rank, world_size=size)
        try:
            world = cls(rank, size, torch.device("cuda", local_rank) if on_gpu else torch.device("cpu"))
            hosts = world.gather_numbers(_host_number())()
            world.sum(torch.zeros(1, device=world.device))  # NCCL wants all ranks in its first exchange
            yield world.in_nodes_of(ranks_per_node(hosts))
            dist.barrier()
        finally:
            dist.destroy_process_group()

    def in_nodes_of(self, ranks_per_node: int) -> World:
        """The same ranks, so many of which, one after the other, are a node. All ranks of a node call it."""
        assert self.size % ranks_per_node == 0, (self.size, ranks_per_node)
        first = self.rank - self.rank % ranks_per_node
        ranks = [*range(first, first + ranks_per_node)]
        node = dist.new_group(ranks, use_local_synchronization=True) if ranks_per_node > 1 else None
        return replace(self, node=node)

    @property
    def ranks_per_node(self) -> int:
        """They come one after the other, on all nodes as many."""
        return 1 if self.node is None else self.node.size()

    @property
    def is_main(self) -> bool:
        """Whether this rank prints and writes for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.size > 1:
            dist.barrier()

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank. For small things: it pickles."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, work: Callable[[], T]) -> T:
        """What the main rank makes, on every rank; where it fails, all do, so that none waits. It pickles."""
        made: Any = None
        error: NavitClipError | None = None
        if self.is_main:
            try:
                made = work()
            except NavitClipError as raised:
                error = raised
        made, error = self.gather_objects((made, error))[0]
        if error is not None:
            raise error
        return made

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, elementwise; no gradient."""
        total = values.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def gather_numbers(self, *numbers: int) -> Callable[[], list[list[int]]]:
        """Starts to gather every rank's few numbers between hosts, while devices and hosts go on.

        Returns:
            What waits for them: a list for each rank, in rank order.
        """
        if self.size == 1:
            return lambda: [list(numbers)]
        gathered = torch.empty(self.size, len(numbers), dtype=torch.int64)
        work = dist.all_gather(list(gathered), torch.tensor(numbers), async_op=True)

        def wait() -> list[list[int]]:
            work.wait()
            return gathered.tolist()

        return wait

    def counts(self, count: int) -> list[int]:
        """How many rows each rank holds, in rank order."""
        return [count for (count,) in self.gather_numbers(count)()]

    @torch.no_grad()
    def gather_rows(
        self, rows: Shaped[Tensor, "rows ..."], counts: list[int]
    ) -> Shaped[Tensor, "all_rows ..."]:
        """All ranks' rows in rank order; no gradient.

        Args:
            rows: this rank's rows, as many as `counts` says.
            counts: rows of every rank, from `counts()`.
        """
        if self.size == 1:
            return rows
        # Collectives want equal shapes: shorter ranks are padded, and the padding is cut off on arrival.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def ranks_per_node(hosts: Sequence[object]) -> int:
    """How many ranks come one after the other on each host, or 1 where some have more than others.

    Args:
        hosts: every rank's, in rank order. They decide by which links rows travel, and nothing else.
    """
    runs = {len([*run]) for _, run in groupby(hosts)}
    return runs.pop() if len(runs) == 1 else 1


def _host_number() -> int:
    return zlib.crc32(socket.gethostname().encode())
