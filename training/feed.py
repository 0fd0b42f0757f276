"""What each step trains on, fetched while the device computes the step before.

Fetched is: taken from the loader, started on its way to the device, and told to the other ranks. A step has
one exchange between hosts: how many pairs each rank has for the next, and whether it was asked to stop.
"""

from __future__ import annotations

from typing import NamedTuple

from navit_clip.batch import Batch
from navit_clip.data import TrainLoader
from navit_clip.data.loader import Fetched
from navit_clip.data.transport import Transfer
from navit_clip.distributed import World
from navit_clip.errors import NavitClipError
from training.stop import StopRequest


class StepBatches(NamedTuple):
    """Of one rank."""

    on_host: list[Batch]
    on_device: list[Batch]
    counts: list[int]
    """Pairs of every rank, over all of its batches."""


class Feed:
    """A rank's batches, a step ahead: `fetch` and `take` in turn, all ranks together.

    The loader's state covers what was taken: a run that goes on from there fetches the rest again.

    Args:
        loader: this rank's, already where the run is.
        num_batches: of a step.
        stop: whether this rank was asked to.
        world: the ranks.
    """

    def __init__(self, loader: TrainLoader, num_batches: int, stop: StopRequest, world: World):
        self._loader = loader
        self._fetching = loader.fetch()
        self._num_batches = num_batches
        self._transfer = Transfer(world.device)
        self._stop = stop
        self._world = world

    def fetch(self) -> None:
        """Waits for the loader, but neither for the way to the device nor for the other ranks.

        An error of the loader waits for `take`: by then the step before is done, and saved if it is to be.
        """
        fetched: list[Fetched] = []
        self._failure: NavitClipError | None = None
        try:
            fetched = [next(self._fetching) for _ in range(self._num_batches)]
        except NavitClipError as error:
            self._failure = error
        self._fetched = fetched
        self._moving = [self._transfer.start(each.batch) for each in fetched]
        num_pairs = sum(len(each.batch) for each in fetched)
        self._told = self._world.gather_numbers(num_pairs, int(self._stop.here))

    def stopped(self) -> bool:
        """Whether any rank had been asked to stop when it fetched: the same on all ranks."""
        return any(asked for _, asked in self._told())

    def take(self) -> StepBatches:
        """The step's batches, whose turn has come.

        Raises:
            DataError: the loader of a rank cannot go on, so that none can: which and why, on all ranks alike.
        """
        counts = [num_pairs for num_pairs, _ in self._told()]
        if 0 in counts:
            raise self._failure_of(counts.index(0))
        for each in self._fetched:
            self._loader.hand_out(each)
        on_host = [each.batch for each in self._fetched]
        on_device = [self._transfer.arrived(batch) for batch in self._moving]
        self._fetched, self._moving = [], []  # nothing is kept beyond its step
        return StepBatches(on_host, on_device, counts)

    def _failure_of(self, rank: int) -> NavitClipError:
        failure = self._world.gather_objects(self._failure)[rank]
        assert failure is not None
        return failure if self._world.size == 1 else type(failure)(f"rank {rank}: {failure}")
