"""Whether the loader keeps up with the step: the share of time that a run waits for data.

JPEGs of noise are written to shards first, so that decoding is real; noise is the worst case for a decoder.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers.contender import Machine
from benchmarks.peers.workload import SIZES
from navit_clip.config import build_config
from navit_clip.data.shards import write_shard
from navit_clip.distributed import World
from navit_clip.model import TOWERS
from navit_clip.tokenizer import train_tokenizer
from training.config import RunConfig
from training.train import run_training

SAMPLES, STEPS = {"cuda": 2000, "cpu": 40}, {"cuda": 40, "cpu": 3}
SIDE = {"cuda": 400, "cpu": 64}
BUDGET = {"cuda": 65536, "cpu": 256}


def overlap_rows(size: str, world: World) -> list[dict[str, Any]]:
    """A short run of the project's own command, and what its log says of waiting."""
    machine = Machine.here()
    on = machine.device.type
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_samples(folder, SAMPLES[on], SIDE[on])
        config = run_config(folder, size, on)
        run_training(config, world)
        rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "train"][-1]  # the first starts workers and kernels
    names = ("data_wait", "pairs_per_second", "flops_utilisation", "fill")
    return [{"name": f"{size}, {config.data.num_workers} workers", **{name: last[name] for name in names}}]


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


def run_config(folder: Path, size: str, on: str) -> RunConfig:
    """Steps enough to see whether workers fall behind; nothing is evaluated."""
    size_of_towers, budget = SIZES[size]._asdict(), BUDGET[on]
    pairs = STEPS[on] * budget // (64 if on == "cuda" else 8)
    return build_config(
        RunConfig,
        {
            "folder": str(folder / "run"),
            "pairs": pairs,
            "tokenizer": str(folder / "tokenizer"),
            "log_every": max(1, STEPS[on] // 3),
            "model": dict.fromkeys(TOWERS, size_of_towers),
            "data": {
                "shards": [str(folder / "*.tar")],
                "resolution": {"min_side": 64, "max_side": 256 if on == "cuda" else 96},
                "drop": {"rate": 0.5},
                "tokens_per_batch": budget,
                "lookahead": 64,
                "num_workers": min(16, os.cpu_count() or 1) if on == "cuda" else 1,
            },
            "engine": {"precision": "bf16" if on == "cuda" else "fp32"},
            "evaluation": {"num_workers": 0},
        },
        where="overlap",
    )
