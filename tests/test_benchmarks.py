"""Benchmarks that no other test runs, at a tiny size: that they run, and that they count what they time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import block, scaling_curves
from benchmarks.peers.contender import Machine
from benchmarks.peers.workload import SIZES
from navit_clip.model import choose_backend
from navit_clip.model.blocks import Transformer


def test_the_parts_of_a_block(monkeypatch):
    monkeypatch.setattr(Transformer, "compile_blocks", lambda transformer: None)  # it takes a minute
    machine, size = Machine.here(), SIZES["tiny"]
    choose_backend("auto", machine.device, machine.dtype)
    runs, flops = block.parts(size, 2, machine), block.part_flops(size, 2 * block.LENGTH)
    for run in runs.values():
        run()
    assert flops["block"] == flops["products with weights"] + flops["attention"]
    assert flops.keys() < runs.keys()


def test_a_setting_of_the_curves_is_planned_as_it_says():
    (setting,) = (one for one in scaling_curves.SETTINGS if one.name == "L/16, the same, loss in TF32")
    config, workload = scaling_curves.planned(setting)
    assert (config.loss.products, config.model.image.width) == ("tf32", 1024)
    assert workload.image_tokens == pytest.approx(57344, rel=0.01)


def test_a_host_starts_the_loss_of_many_ranks(root: Path):
    command = [sys.executable, "-m", "benchmarks.loss_host", "--ranks", "32", "--rounds", "1"]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 nodes: ")
