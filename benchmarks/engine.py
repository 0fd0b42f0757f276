"""What a training step costs, in time and in memory, by how the engine is set.

    python benchmarks/engine.py

A pair of small towers and 64 pairs of noise a step (40 to 100 patches an image), fp32, one thread a rank.
Every row is a run of its own, in new processes: two steps to warm up, then the median of five. Seconds are
the CPU's, of the busiest rank; memory is the most that a rank holds while it steps, beyond what it held
before the model was made. The same pairs in all rows: two ranks have half of them each, accumulated batches a
quarter.

    python benchmarks/engine.py --stop

Seconds from SIGTERM to the end of a run of configs/run/demo.yaml, its checkpoint saved.
"""

from __future__ import annotations

import argparse
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import turns
from benchmarks.ranks import on_ranks
from navit_clip.batch import Batch, Captions, PackedImages, Patches
from navit_clip.distributed import World
from navit_clip.loss import LossConfig
from navit_clip.model import ClipConfig, ImageTowerConfig, TextTowerConfig, TwoTowers
from training.engine import Engine, EngineConfig
from training.gradient import accumulate_gradient
from training.optimizer import OptimizerConfig, make_optimizer

TOWER: dict[str, int] = {"width": 192, "depth": 4, "num_heads": 3, "mlp_dim": 768}
PATCH_SIZE, VOCABULARY, PAIRS = 16, 4096, 64
WARM_UP, STEPS = 2, 5
MIB = 2**20


class Way(NamedTuple):
    """A row: a name, the ranks, and settings."""

    name: str
    ranks: int
    engine: dict[str, Any]
    checkpoint_blocks: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()


WAYS = [
    Way("ZeRO 0", 1, {}),
    Way("activation checkpointing", 1, {}, checkpoint_blocks=True),
    Way("4 batches accumulated", 1, {"accumulation": 4}),
    Way("compiled", 1, {"compile": True}),
    Way("ZeRO 2, offloaded to the host", 1, {"zero_stage": 2, "offload_optimizer": "cpu"}),
    Way("ZeRO 3", 1, {"zero_stage": 3}),
    Way("ZeRO 0", 2, {}),
    Way("ZeRO 1", 2, {"zero_stage": 1}),
    Way("ZeRO 2", 2, {"zero_stage": 2}),
    Way("ZeRO 3", 2, {"zero_stage": 3}),
]


class Cost(NamedTuple):
    """Of one rank."""

    seconds: float
    memory: float
    first: float
    """Seconds of the first step by the clock, in which things are compiled."""


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step costs, by how the engine is set.")
    parser.add_argument("--stop", action="store_true", help="measure how long a run takes to stop instead")
    if parser.parse_args().stop:
        print(f"{seconds_to_stop():.1f} s from SIGTERM to the end of the process")
        return
    print(f"torch {torch.__version__}\n")
    print("| settings | ranks | CPU seconds a step | x | memory of a rank | first step |")
    print("|---|---|---|---|---|---|")
    whole: dict[int, float] = {}
    for way in WAYS:
        ranks = on_ranks(way.ranks, cost_of_a_step, way)
        seconds, first = (max(getattr(rank, name) for rank in ranks) for name in ("seconds", "first"))
        share = seconds / whole.setdefault(way.ranks, seconds)
        memory = max(rank.memory for rank in ranks) / MIB
        row = [way.name, way.ranks, f"{seconds:.2f}", f"{share:.2f}", f"{memory:.0f} MiB", f"{first:.1f} s"]
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def cost_of_a_step(world: World, way: Way) -> Cost:
    before = turns.resident("VmRSS")
    torch.manual_seed(0)
    blocks = {**TOWER, "checkpoint_blocks": way.checkpoint_blocks}
    image = ImageTowerConfig(**blocks, patch_size=PATCH_SIZE)
    model = TwoTowers(ClipConfig(image=image, text=TextTowerConfig(**blocks, vocab_size=VOCABULARY)))
    engine_config = EngineConfig(precision="fp32", **way.engine)
    engine = Engine(engine_config, model, make_optimizer(way.optimizer, model), world)
    size = PAIRS // world.size // engine_config.accumulation
    batches = [
        noise(size, world.rank * engine_config.accumulation + part)
        for part in range(engine_config.accumulation)
    ]
    counts = world.counts(PAIRS // world.size)
    seconds, first = [], 0.0
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            turns.forget_high_water_mark()
        clock, cpu = time.perf_counter(), cpu_seconds()
        accumulate_gradient(engine, batches, counts, LossConfig(), world)
        engine.step(1e-3)
        seconds.append(cpu_seconds() - cpu)
        first = first or time.perf_counter() - clock
    return Cost(statistics.median(seconds[WARM_UP:]), turns.resident("VmHWM") - before, first)


def noise(num_pairs: int, seed: int) -> Batch:
    """Pictures of 40 to 100 patches, captions of 8 to 24 tokens."""
    rng = np.random.default_rng(seed)
    images = []
    for rows in sorted(rng.integers(4, 11, num_pairs)):
        grid = (int(rows), 10)
        position = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 2)
        pixels = rng.integers(0, 256, (len(position), 3 * PATCH_SIZE**2), dtype=np.uint8)
        images.append(Patches(pixels, position.astype(np.int32), grid))
    lengths = rng.integers(8, 25, num_pairs)
    captions = [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]
    keys = tuple(f"{seed}/{number}" for number in range(num_pairs))
    return Batch(PackedImages.pack(images), Captions.pack(captions, range(num_pairs)), keys)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def seconds_to_stop() -> float:
    """A run that has come to its twentieth step is asked to stop."""
    python = [sys.executable, "-m"]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = ["navit_clip.cli", "tokenizer", "train", "demo/stamps-train.tar", f"{folder}/tokenizer"]
        subprocess.run([*python, *tokenizer, "--vocab-size", "1162"], check=True, capture_output=True)
        settings = [f"folder={folder}/run", f"tokenizer={folder}/tokenizer", "evaluate_every=0"]
        run = subprocess.Popen([*python, "training.train", "configs/run/demo.yaml", *settings])
        log = Path(folder) / "run" / "out.log"
        while not log.exists() or "Train Epoch" not in log.read_text():
            time.sleep(0.05)
        start = time.perf_counter()
        run.send_signal(signal.SIGTERM)
        assert run.wait() == 75, "the exit code of a run that was asked to stop"
        seconds = time.perf_counter() - start
        assert "saved" in log.read_text()
        return seconds


if __name__ == "__main__":
    main()
