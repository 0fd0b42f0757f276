"""Batches that are fetched a step ahead: what is saved meanwhile, and what ranks tell each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import torch
from safetensors.torch import load_file

from navit_clip.data import TrainLoader
from navit_clip.distributed import World
from navit_clip.errors import DataError
from navit_clip.tokenizer import load_tokenizer
from navit_clip.weights import resolve_model_folder
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.checkpoint import CheckpointConfig
from training.config import RunConfig
from training.feed import Feed
from training.stop import StopRequest
from training.train import run_training

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
SAVED = 4
"""A step after which a run saves, while the batches of the next are fetched."""


def loader_of(config: RunConfig) -> TrainLoader:
    return TrainLoader(config.data, load_tokenizer(config.tokenizer), 8, 64, config.seed)


def test_what_was_only_fetched_comes_again(tmp_path: Path):
    loader, again = (loader_of(small_run(tmp_path)) for _ in range(2))
    feed = Feed(loader, 2, StopRequest(), ALONE)
    feed.fetch()
    feed.take()
    feed.fetch()
    again.load_state(loader.state())
    step = feed.take()
    assert [batch.keys for batch in step.on_host] == [batch.keys for batch in islice(again, 2)]
    assert step.counts == [sum(len(batch) for batch in step.on_device)]
    assert loader.state() == again.state()


def test_a_request_is_heeded_with_the_next_exchange(tmp_path: Path):
    stop = StopRequest()
    feed = Feed(loader_of(small_run(tmp_path)), 1, stop, ALONE)
    feed.fetch()
    stop.ask()
    assert not feed.stopped()
    feed.take()
    feed.fetch()
    assert feed.stopped()


def counting_exchanges(run: Callable[[], object]) -> int:
    """Of few numbers between hosts: how many were started."""
    starts, gather = count(), World.gather_numbers

    def gather_and_count(*arguments):
        next(starts)
        return gather(*arguments)

    World.gather_numbers = gather_and_count
    run()
    World.gather_numbers = gather
    return next(starts)


def failing_when(run: Callable[[], object], step: int) -> str:
    """What a run says in which the loader has nothing for a step."""
    fetch = TrainLoader.fetch

    def fetch_until_then(loader: TrainLoader):
        yield from islice(fetch(loader), step - 1)
        raise DataError("the disk is gone")

    TrainLoader.fetch = fetch_until_then
    try:
        run()
        return "ended"
    except DataError as error:
        return str(error)
    finally:
        TrainLoader.fetch = fetch


def run_once_whole_and_once_with_an_error(
    world: World, whole: RunConfig, broken: RunConfig
) -> tuple[int, int, str]:
    """Steps and exchanges of the first, and what the second says, which then goes on."""
    steps = []
    exchanges = counting_exchanges(lambda: steps.append(run_training(whole, world).progress.step))
    fails_at = SAVED + 1 if world.rank == world.size - 1 else 10**9
    said = failing_when(lambda: run_training(broken, world), fails_at)
    run_training(broken, world, "latest")
    return steps[0], exchanges, said


def test_a_rank_without_data_ends_all_after_the_step_before_is_saved(tmp_path: Path):
    whole = replace(small_run(tmp_path), checkpoint=CheckpointConfig(every=SAVED))
    broken = replace(whole, folder=str(tmp_path / "broken"))
    outcomes = on_ranks(2, run_once_whole_and_once_with_an_error, whole, broken)
    for steps, exchanges, _ in outcomes:
        assert steps > SAVED + 1
        assert exchanges == steps + 3, "one a step; whether to stop: at the start, when evaluated, at the end"
    assert {said for *_, said in outcomes} == {"rank 1: the disk is gone"}
    log = (Path(broken.folder) / "out.log").read_text()
    assert f"from {broken.folder}/checkpoints/step-{SAVED:08d}" in log
    expected, found = (
        load_file(resolve_model_folder(run.folder) / "model.safetensors") for run in (whole, broken)
    )
    assert all(weight.equal(found[name]) for name, weight in expected.items())
