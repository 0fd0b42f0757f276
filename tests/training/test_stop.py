"""Requests to stop from a command's first line to its last: whole processes, and what they exit with."""

from __future__ import annotations

import os
import signal
import time
from itertools import count
from pathlib import Path
from typing import Any

import training.checkpoint
import training.loop
import training.train
from navit_clip.config import load_config, save_config
from navit_clip.weights import save_weights
from tests.ranks import exit_codes
from tests.training_builders import small_run
from training.gradient import accumulate_gradient
from training.stop import STOPPED
from training.train import main

LAST = 1
"""The rank that is asked."""


def asked_at_once(file: str) -> int:
    """Under a launcher that has ranks pass over signals until they listen, as launch/slurm.sh does."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def load(*arguments: Any) -> Any:
        if int(os.environ["RANK"]) == LAST:
            os.kill(os.getpid(), signal.SIGUSR1)
        return load_config(*arguments)

    training.train.load_config = load
    return main([file])


def test_a_run_that_is_asked_before_its_first_step_leaves_without_one(tmp_path: Path):
    config = small_run(tmp_path)
    save_config(config, tmp_path / "run.yaml")
    assert exit_codes(2, asked_at_once, str(tmp_path / "run.yaml")) == [STOPPED] * 2
    run = Path(config.folder)
    assert "asked to stop: leaving after step 0, with nothing new to save" in (run / "out.log").read_text()
    assert not list(run.glob("checkpoints/*"))


def asked_again_while_saving(file: str, pids: str) -> int:
    """The main rank is asked while it writes, the other while it waits for that."""
    steps, rank = count(1), int(os.environ["RANK"])
    (Path(pids) / str(rank)).write_text(str(os.getpid()))

    def accumulate(*arguments: Any):
        if next(steps) == 2 and rank == LAST:
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate_gradient(*arguments)

    def save(*arguments: Any) -> None:
        time.sleep(0.5)  # until the loop has long been left
        for other in Path(pids).iterdir():
            os.kill(int(other.read_text()), signal.SIGTERM)
        time.sleep(0.1)
        save_weights(*arguments)

    training.loop.accumulate_gradient, training.checkpoint.save_weights = accumulate, save
    return main([file])


def test_a_second_request_leaves_the_save_for_the_first_alone(tmp_path: Path):
    config = small_run(tmp_path)
    save_config(config, tmp_path / "run.yaml")
    (pids := tmp_path / "pids").mkdir()
    codes = exit_codes(2, asked_again_while_saving, str(tmp_path / "run.yaml"), str(pids))
    assert codes == [STOPPED] * 2
    assert (Path(config.folder) / "checkpoints" / "latest").read_text() == "step-00000002"
