"""Two processes do not train in one folder, and one that was killed keeps nobody out."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from navit_clip.distributed import World
from navit_clip.errors import NavitClipError
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.config import RunConfig
from training.lock import LOCK_FILE, run_lock
from training.train import run_training

ALONE = World(rank=0, size=1, device=torch.device("cpu"))

HOLDS_AND_FORKS = """
import os, sys, time, torch
from pathlib import Path
from navit_clip.distributed import World
from training.lock import run_lock
with run_lock(Path(sys.argv[1]), World(rank=0, size=1, device=torch.device("cpu"))):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(600)
"""


def said_to(world: World, config: RunConfig) -> str:
    try:
        run_training(config, world)
    except NavitClipError as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def test_a_second_run_is_refused_and_told_who_trains_there(tmp_path: Path):
    config = small_run(tmp_path)
    run = Path(config.folder)
    with run_lock(run, ALONE) as remark:
        assert remark == ""
        expected = f"CheckpointError: {run}: process {os.getpid()} on .*, since .*, trains here; end it, or"
        for said in on_ranks(2, said_to, config):
            assert re.match(expected, said), said
        assert [path.name for path in run.iterdir()] == [LOCK_FILE], "nothing of the run there is touched"
    assert not run.exists(), "made for nothing"
    assert on_ranks(1, said_to, replace(config, pairs=20)) == ["trained"]
    assert not (run / LOCK_FILE).exists()


def test_a_killed_run_keeps_nobody_out_though_its_workers_live_on(tmp_path: Path):
    code = [sys.executable, "-c", HOLDS_AND_FORKS, str(tmp_path)]
    holder = subprocess.Popen(code, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with (tmp_path / LOCK_FILE).open("a") as file, pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.kill()
        with run_lock(tmp_path, ALONE) as remark:
            assert remark == ""
            os.kill(worker, 0)  # it does live on
    finally:
        holder.kill()
        holder.wait()
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_a_file_system_without_locks_is_told_and_no_hindrance(tmp_path: Path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with run_lock(tmp_path, ALONE) as remark:
        assert remark == (
            f"{tmp_path}: no lock to be had (No locks available); see that no other process trains here"
        )
    assert list(tmp_path.iterdir()) == []
