"""A run's place in the data -> the same place for another number of ranks and workers.

Nothing is lost and nothing is seen twice in an epoch: the blocks that some worker had open, and those that it
had not come to, are dealt again, earliest first; so are the samples that waited for a batch, the one that
waited longest first. After them all workers go on with the sequence of blocks where the farthest of the old
ones had got to.
"""

from __future__ import annotations

from collections.abc import Sequence

from navit_clip.data.counts import no_counts, total_by_source
from navit_clip.data.loader import STATE_VERSION, LoaderState, check_version
from navit_clip.data.order import WalkState
from navit_clip.data.stream import StreamState
from navit_clip.errors import CheckpointError


def deal_again(states: Sequence[LoaderState], world_size: int, num_workers: int) -> list[LoaderState]:
    """Deals what a run had left to other ranks and workers.

    Args:
        states: of all ranks of the run, in any order.
        world_size: the new number of ranks.
        num_workers: the new number of worker processes a rank.

    Returns:
        A state for each new rank.

    Raises:
        CheckpointError: a rank's state is missing, they are not of one run, or are an older version's.
    """
    ranks = sorted(state["rank"] for state in states)
    if not states or ranks != list(range(states[0]["world_size"])) or len({s["data"] for s in states}) > 1:
        raise CheckpointError(f"expected the data states of all ranks of one run, found those of {ranks}")
    check_version(states[0])
    old = [worker for state in sorted(states, key=lambda state: state["rank"]) for worker in state["workers"]]
    streams_a_rank = max(1, num_workers)
    dealt = _deal(old, world_size * streams_a_rank)
    return [
        {
            "version": STATE_VERSION,
            "rank": rank,
            "world_size": world_size,
            "data": states[0]["data"],
            "next_worker": 0,
            "workers": dealt[rank * streams_a_rank : (rank + 1) * streams_a_rank],
        }
        for rank in range(world_size)
    ]


def _deal(old: Sequence[StreamState], num_streams: int) -> list[StreamState]:
    frontier = max(worker["walk"]["next"] for worker in old)
    blocks = sorted(block for worker in old for block in _blocks_left(worker["walk"], frontier, len(old)))
    # In lines as before: the one that waited longest is first.
    waiting = [place for worker in old for place in worker["waiting"]]
    waiting.sort(key=lambda place: (-place[-1], place))
    closed = sum(worker["walk"]["closed"] for worker in old) / num_streams
    dealt: list[StreamState] = [
        {
            "walk": {
                "next": frontier + worker,
                "backlog": blocks[worker::num_streams],
                "open": [],
                "closed": closed,
            },
            "waiting": waiting[worker::num_streams],
            "counts": [no_counts() for _ in old[0]["counts"]],
        }
        for worker in range(num_streams)
    ]
    # Counts are of the whole run: the first stream carries those of the old ones on.
    dealt[0]["counts"] = total_by_source([worker["counts"] for worker in old])
    return dealt


def _blocks_left(walk: WalkState, frontier: int, stride: int) -> list[list[int]]:
    """[position, cursor] of the blocks before the frontier that a worker has not finished."""
    unopened = [[position, 0] for position in range(walk["next"], frontier, stride)]
    left = [[position, cursor] for position, _, cursor, _ in walk["open"]]
    return left + walk["backlog"] + unopened
