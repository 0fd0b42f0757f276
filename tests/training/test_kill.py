"""A run that is killed again and again, at any moment: it goes on, and ends as if it had not been."""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from navit_clip.distributed import World
from navit_clip.weights import resolve_model_folder
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.checkpoint import CheckpointConfig
from training.config import RunConfig
from training.train import run_training

KILLS = 30


def run(world: World, config: RunConfig) -> None:
    run_training(config, world, resume="auto")


def run_alone(config: RunConfig) -> None:
    with World.join() as world:
        run(world, config)


def kill(config: RunConfig, steps: int, share: float) -> bool:
    """Starts the run and kills it some steps, two at least, and a share of a step later.

    False where it ended before.
    """
    process = multiprocessing.get_context("forkserver").Process(target=run_alone, args=(config,))
    log = Path(config.folder) / "out.log"
    goal = steps_told(log) + steps
    process.start()
    moments = []
    for number in (goal - 1, goal):
        while process.is_alive() and steps_told(log) < number:
            time.sleep(0.002)
        moments.append(time.perf_counter())
    process.join(share * (moments[1] - moments[0]))
    killed = process.is_alive()
    process.kill()
    process.join()
    return killed


def steps_told(log: Path) -> int:
    """How many steps a run has logged, over all of its starts."""
    return log.read_text().count("Train Epoch") if log.exists() else 0


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path):
    checkpoint = CheckpointConfig(every=1, keep=2)
    whole = replace(small_run(tmp_path, pairs=3000), checkpoint=checkpoint)
    on_ranks(1, run, whole)

    killed = replace(whole, folder=str(tmp_path / "killed"))
    most = steps_told(Path(whole.folder) / "out.log") // (KILLS + 5)
    moments = random.Random(0)
    for _ in range(KILLS):
        assert kill(killed, moments.randint(2, most), moments.random()), "it ended on the way"
    on_ranks(1, run, killed)

    folders = [resolve_model_folder(config.folder) for config in (whole, killed)]
    assert folders[0].parent.name == folders[1].parent.name
    expected, found = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(weight.equal(found[name]) for name, weight in expected.items())
    log = (Path(killed.folder) / "out.log").read_text()
    assert log.count("M trained") == KILLS + 1
    assert log.count("not whole") == 0, "what is named latest is whole, whenever the run is killed"
