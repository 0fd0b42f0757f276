"""Exchanges between ranks that hold different numbers of rows."""

from __future__ import annotations

import pytest
import torch

from navit_clip.distributed import World, ranks_per_node
from navit_clip.errors import ConfigError
from tests.ranks import on_ranks

COUNTS = [2, 0, 3]


def exchange(world: World) -> dict:
    own = COUNTS[world.rank]
    rows = torch.full((own, 2), float(world.rank))
    counts = world.counts(own)
    everyone = world.gather_rows(rows, counts)
    return {
        "counts": counts,
        "rows": everyone.tolist(),
        "objects": world.gather_objects({"rank": world.rank}),
        "sum": world.sum(torch.tensor([1.0, world.rank])).tolist(),
        "main": world.is_main,
        "ranks_per_node": world.ranks_per_node,
        "made": world.from_main(lambda: f"by rank {world.rank}"),
        "failed": failure(world),
    }


def failure(world: World) -> str:
    def fails() -> None:
        raise ConfigError(f"on rank {world.rank}")

    with pytest.raises(ConfigError) as caught:
        world.from_main(fails)
    return str(caught.value)


def test_three_ranks_exchange_uneven_rows():
    results = on_ranks(3, exchange)
    for rank, found in enumerate(results):
        assert found["counts"] == COUNTS
        assert found["rows"] == [[0.0, 0.0]] * 2 + [[2.0, 2.0]] * 3
        assert found["objects"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert found["sum"] == [3.0, 3.0]
        assert found["main"] == (rank == 0)
        assert found["ranks_per_node"] == 3
        assert (found["made"], found["failed"]) == ("by rank 0", "on rank 0")


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [("a", 1), ("aabb", 2), ("aaaa", 4), ("aab", 1), ("abab", 1), ("aabbaa", 2)],
)
def test_a_node_is_as_many_ranks_in_a_row_on_every_host(hosts, expected):
    assert ranks_per_node(hosts) == expected


def test_a_world_of_one_needs_no_exchange():
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    rows = torch.randn(3, 2)
    assert alone.gather_rows(rows, alone.counts(3)) is rows
    assert alone.gather_objects("x") == ["x"]
    alone.barrier()


def test_ranks_with_nowhere_to_meet_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2 and MASTER_ADDR is not set"), World.join():
        pass
