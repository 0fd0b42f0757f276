"""Batches for one rank: streams in worker processes, taken in turn, with a state to go on from.

What comes out is a pure function of config, seed, ranks and workers; which samples an epoch has, and what
is drawn for each, depends on seed and epoch alone. The state covers the batches that were handed out, not
those that workers have ready.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, TypedDict

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from navit_clip.batch import Batch
from navit_clip.data.config import DataConfig
from navit_clip.data.counts import SourceCounts, total_by_source, total_counts
from navit_clip.data.order import blocks_done
from navit_clip.data.shards import Shard, find_shards
from navit_clip.data.stream import Stream, StreamState, block_order, first_state
from navit_clip.data.transport import (
    NewBlock,
    Parcel,
    ReceivedBlocks,
    SharedBlocks,
    private_block,
)
from navit_clip.errors import CheckpointError, NavitClipError
from navit_clip.tokenizer import Tokenizer

STATE_VERSION = 2
"""Raised with every change to a state's form, or to the order and the draws that it goes on with."""


class LoaderState(TypedDict):
    """Where a rank's loader is; plain JSON."""

    version: int
    """`STATE_VERSION` of the code that wrote it; the first had none."""
    rank: int
    world_size: int
    data: str
    """What positions in the order refer to: a digest of seed, shard names and what orders them."""
    next_worker: int
    """Which worker's batch comes next."""
    workers: list[StreamState]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A batch that may have to wait for its turn, and where the loader is once that has come."""

    batch: Batch
    worker: int
    state: StreamState


class TrainLoader:
    """One rank's batches without end.

    Iterating starts the workers; iterating again starts them anew, after the last batch handed out.

    Args:
        config: see there.
        tokenizer: encodes captions; it is sent to the worker processes.
        patch_size: in pixels.
        context_length: most tokens of a caption.
        seed: of the order and of all draws; the same on all ranks.
        rank: this process's number.
        world_size: the number of ranks.

    Raises:
        ConfigError: an image of the largest side would not fit a batch.
        DataError: no shard is found; on iterating, also that samples are bad beyond the config's patience.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        patch_size: int,
        context_length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        config.check_budget(patch_size, context_length)
        self._config = config
        self._shards = find_shards(config.shards, config.remote)
        self._stream_arguments = (tokenizer, patch_size, context_length, seed)
        num_workers = max(1, config.num_workers)
        self._num_streams = world_size * num_workers
        self._blocks_per_epoch = block_order(config, self._shards, seed).blocks_per_epoch
        self._state: LoaderState = {
            "version": STATE_VERSION,
            "rank": rank,
            "world_size": world_size,
            "data": _digest(seed, self._shards, config),
            "next_worker": 0,
            "workers": [
                first_state(rank * num_workers + worker, len(config.shards)) for worker in range(num_workers)
            ],
        }

    def __iter__(self) -> Iterator[Batch]:
        for fetched in self.fetch():
            self.hand_out(fetched)
            yield fetched.batch

    def fetch(self) -> Iterator[Fetched]:
        """The same batches ahead of their turns: the loader stays where it is until each is handed out."""
        num_workers = len(self._state["workers"])
        first = self._state["next_worker"]
        # DataLoader asks its workers in turn, beginning with the first: let that one be whose turn it is.
        states = self._state["workers"][first:] + self._state["workers"][:first]
        blocks = ReceivedBlocks()
        handing = iter(self._data_loader(states, blocks.number))
        Finalize(None, _kill, (getattr(handing, "_workers", ()),), exitpriority=0)
        for turn, handed in enumerate(handing):
            if isinstance(handed, NavitClipError):
                raise handed
            yield Fetched(handed.parcel.open(), (first + turn) % num_workers, handed.state)

    def hand_out(self, fetched: Fetched) -> None:
        """A batch's turn has come: the next one of those that were fetched."""
        self._state["workers"][fetched.worker] = fetched.state
        self._state["next_worker"] = (fetched.worker + 1) % len(self._state["workers"])

    def state(self) -> LoaderState:
        """Where to go on after the last batch handed out."""
        return {**self._state, "workers": list(self._state["workers"])}

    def load_state(self, state: LoaderState) -> None:
        """Goes on where another run of this rank was; to be called before iterating.

        Raises:
            CheckpointError: the state is an older version's, another rank's, of another number of ranks or
                workers (then `deal_again` makes one that fits), or of other data.
        """
        check_version(state)
        for name in ("rank", "world_size"):
            _check_same(name, state[name], self._state[name])
        _check_same("num_workers", len(state["workers"]), len(self._state["workers"]))
        if state["data"] != self._state["data"]:
            raise CheckpointError(
                "the checkpoint's place in the data is of other shards, another seed or another "
                "data.blocks_per_shard, data.weights or data.resampled than this run's: set them as they were"
            )
        self._state = {**state, "workers": list(state["workers"])}

    @property
    def counts(self) -> SourceCounts:
        """What became of the samples that this rank has read, as of the last batch handed out."""
        return total_counts(self.source_counts.values())

    @property
    def source_counts(self) -> dict[str, SourceCounts]:
        """The same for each source, by its pattern in the config."""
        totals = total_by_source([worker["counts"] for worker in self._state["workers"]])
        return dict(zip(self._config.shards, totals, strict=True))

    @property
    def epoch(self) -> float:
        """Epochs done, in blocks; seen from this rank, whose share of them is one in `world_size`."""
        done = sum(blocks_done(worker["walk"]) for worker in self._state["workers"])
        return done * self._state["world_size"] / self._blocks_per_epoch

    def _data_loader(self, states: Sequence[StreamState], received: int) -> DataLoader:
        num_workers = self._config.num_workers
        streams = _Streams(
            self._config, self._shards, self._stream_arguments, self._num_streams, states, received
        )
        return DataLoader(
            streams,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=self._config.prefetch if num_workers else None,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_it_is,
            worker_init_fn=_leave_stopping_to_the_rank,
            # DataLoader draws a seed that nothing here uses: not from the generator that training draws from.
            generator=torch.Generator(),
        )


@dataclass(frozen=True, slots=True)
class _Handed:
    """What a worker hands over: a batch, and its stream's state after it."""

    parcel: Parcel
    state: StreamState

    def pin_memory(self) -> _Handed:
        """DataLoader calls this; it would look through the state, too."""
        return _Handed(self.parcel.pin_memory(), self.state)


class _Streams(IterableDataset):
    """In worker i of a DataLoader, the stream that begins at states[i].

    An error of ours comes out as the last item, since DataLoader would wrap its message in a traceback.
    """

    def __init__(
        self,
        config: DataConfig,
        shards: Sequence[Shard],
        arguments: tuple[Tokenizer, int, int, int],
        num_streams: int,
        states: Sequence[StreamState],
        received: int,
    ):
        self._config = config
        self._shards = shards
        self._arguments = arguments
        self._num_streams = num_streams
        self._states = states
        self._received = received

    def __iter__(self) -> Iterator[_Handed | NavitClipError]:
        worker = get_worker_info()
        try:
            if worker is None:
                stream = self._stream(self._states[0], private_block)
                for batch in stream:
                    yield _Handed(Parcel.of(batch), stream.state())
            else:
                # A forked process must not use the threads that tokenizers had in its parent.
                os.environ["TOKENIZERS_PARALLELISM"] = "false"
                blocks = SharedBlocks(self._received, worker.id)
                stream = self._stream(self._states[worker.id], blocks.new)
                for batch in stream:
                    yield _Handed(blocks.send(Parcel.of(batch)), stream.state())
        except NavitClipError as error:
            yield error

    def _stream(self, state: StreamState, new_block: NewBlock) -> Stream:
        arguments = (self._config, self._shards, *self._arguments, self._num_streams, state)
        return Stream(*arguments, new_block)


def check_version(state: LoaderState) -> None:
    """Raises CheckpointError where another version wrote it, whose samples came and were drawn otherwise."""
    version = state.get("version", 1)
    if version != STATE_VERSION:
        raise CheckpointError(
            f"the checkpoint's place in the data has version {version}, this code goes on from version "
            f"{STATE_VERSION}: resume with the release that wrote it, or start a run from its weights "
            "(init_from)"
        )


def _leave_stopping_to_the_rank(worker: int) -> None:
    """Schedulers signal whole process groups; a rank that was asked to stop still ends its step."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _kill(workers: Sequence[BaseProcess]) -> None:
    """Those that are left when their process ends.

    multiprocessing would ask them to end by a signal that they do not heed, and then wait for them.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # by which DataLoader would report them as lost
    for worker in workers:
        worker.kill()


def _as_it_is(handed: Any) -> Any:
    """Batches come made; DataLoader would look into each of their keys."""
    return handed


def _digest(seed: int, shards: Sequence[Shard], config: DataConfig) -> str:
    words = (
        seed,
        config.blocks_per_shard,
        config.weights,
        config.resampled,
        *(shard.name for shard in shards),
    )
    return hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8).hexdigest()


def _check_same(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise CheckpointError(
            f"the checkpoint's place in the data is for {name} {found}, this run has {expected}: "
            "run with the same number of ranks and workers, or deal the samples again (deal_again)"
        )
