"""Whether the loader keeps up with the step: the share of time that a run waits for data.

JPEGs of noise are written to shards first, so that decoding is real; noise is the worst case for a decoder.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu.rows import Measure
from benchmarks.peers.contender import Machine
from benchmarks.peers.workload import SIZES
from navit_clip.config import build_config
from navit_clip.data.shards import write_shard
from navit_clip.distributed import World
from navit_clip.model import TOWERS
from navit_clip.tokenizer import train_tokenizer
from training.config import RunConfig
from training.train import run_training

SAMPLES, SIDE = {"cuda": 1000, "cpu": 40}, {"cuda": 400, "cpu": 64}
BUDGET, PATCHES = {"cuda": 65536, "cpu": 256}, {"cuda": 53, "cpu": 12}
"""Image tokens of a batch, and about how many an image has."""
PREFETCH = 2
WINDOWS = 3
"""Of steps between log lines, of which the first is left out."""


def overlap_rows(size: str, world: World) -> dict[str, Measure]:
    """A short run of the project's own command, and what its log says of waiting."""
    on = Machine.here().device.type
    # One core is for the process that launches kernels.
    workers = max(1, min(16, os.cpu_count() or 1) - 1) if on == "cuda" else 1
    return {f"{size}, {workers} workers": partial(overlap_row, size, on, workers, world)}


def overlap_row(size: str, on: str, workers: int, world: World) -> dict[str, Any]:
    """The mean over steps that come after as many as may have been waiting, ready, for the first one.

    `data_wait` is the share of time in which the GPU had nothing to do for want of a batch. What the loader's
    workers take from the step shows in `milliseconds`, beside those of the step without a loader.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_samples(folder, SAMPLES[on], SIDE[on])
        config = run_config(folder, size, on, workers)
        run_training(config, world)
        rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    window = config.log_every
    settled = [
        row for row in rows if row["kind"] == "train" and row["step"] > window and row["step"] % window == 0
    ]
    names = ("data_wait", "pairs_per_second", "flops_utilisation", "fill")
    found = {name: statistics.mean(row[name] for row in settled) for name in names}
    milliseconds = 1e3 * statistics.mean(row["seconds_per_batch"] for row in settled)
    return {"steps": window * len(settled), "milliseconds": milliseconds, **found}


def write_samples(folder: Path, number: int, side: int) -> None:
    """Shards of JPEGs with captions, and a tokenizer for them."""
    random = np.random.default_rng(0)
    captions = [f"picture number {index}, a photo of it" for index in range(number)]
    samples = []
    for index, caption in enumerate(captions):
        buffer = io.BytesIO()
        coarse = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side)).save(buffer, "JPEG")
        samples.append({"__key__": f"{index:06d}", "jpg": buffer.getvalue(), "txt": caption})
    shards = 8
    for shard in range(shards):
        write_shard(folder / f"{shard:03d}.tar", samples[shard::shards])
    train_tokenizer(captions, vocab_size=512).save(folder / "tokenizer")


def run_config(folder: Path, size: str, on: str, workers: int) -> RunConfig:
    """A log line after every so many steps, twice what batches can wait in the queue; no evaluation."""
    budget, waiting = BUDGET[on], workers * PREFETCH
    return build_config(
        RunConfig,
        {
            "folder": str(folder / "run"),
            "pairs": WINDOWS * 2 * waiting * budget // PATCHES[on],
            "tokenizer": str(folder / "tokenizer"),
            "log_every": 2 * waiting,
            "model": dict.fromkeys(TOWERS, SIZES[size]._asdict()),
            "data": {
                "shards": [str(folder / "*.tar")],
                "resolution": {"min_side": 64, "max_side": 256 if on == "cuda" else 96},
                "drop": {"rate": 0.5},
                "tokens_per_batch": budget,
                "lookahead": 64,
                "num_workers": workers,
                "prefetch": PREFETCH,
            },
            "engine": {"precision": "bf16" if on == "cuda" else "fp32"},
            "evaluation": {"num_workers": 0},
        },
        where="overlap",
    )
