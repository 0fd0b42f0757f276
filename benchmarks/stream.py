"""A long stream: does memory stay flat, and how long does it take to go on at the end of an epoch?

    python benchmarks/stream.py

Makes 100,000 small samples (ten shards of 10,000; a JPEG of 48 x 64 pixels and a caption each), and reads
them twice, in this one process. Prints the resident memory after every 20,000 samples; then how long a loader
in a new process takes to go on where the first epoch ended, its first batch included.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from navit_clip.data import DataConfig, TrainLoader, write_shard
from navit_clip.data.resolution import ResolutionConfig
from navit_clip.tokenizer import Tokenizer, train_tokenizer

NUM_SHARDS, SHARD_SIZE = 10, 10_000
STEP = 20_000


def main() -> None:
    """Prints memory along the way, and the seconds that going on takes."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["a small picture"], vocab_size=512)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder))
        batches = loader([folder], tokenizer)
        state, marks, used = "", {}, 0
        for _ in batches:
            used = batches.counts["used"]
            if used // STEP > len(marks):
                marks[used] = psutil.Process().memory_info().rss / 2**20
                print(f"{used:7} samples: {marks[used]:.0f} MiB", flush=True)
            if not state and batches.epoch > 0.9995:
                state = json.dumps(batches.state())
            if used >= 2 * NUM_SHARDS * SHARD_SIZE:
                break
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds = pool.submit(restore, [folder], tokenizer, state).result()
    print(f"restored at the end of the first epoch: {seconds:.2f} s (wanted under 2)")
    first, *_, last = marks.values()
    print(f"memory: {100 * (last / first - 1):+.1f} % from {STEP} to {used} samples (wanted within 3 %)")


def write_shards(folder: Path) -> None:
    random = np.random.default_rng(0)
    images = []
    for _ in range(50):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    for shard in range(NUM_SHARDS):
        samples = (
            {"__key__": f"{number:06d}", "jpg": images[number % len(images)], "txt": f"picture {number}"}
            for number in range(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE)
        )
        write_shard(folder / f"{shard:02d}.tar", samples)


def loader(shards: list[str], tokenizer: Tokenizer) -> TrainLoader:
    sides = ResolutionConfig(min_side=32, max_side=64)
    config = DataConfig(shards=shards, resolution=sides, num_workers=0)
    return TrainLoader(config, tokenizer, patch_size=16, context_length=16, seed=0)


def restore(shards: list[str], tokenizer: Tokenizer, state: str) -> float:
    """The seconds from nothing to the first batch after a state."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    resumed = loader(shards, tokenizer)
    resumed.load_state(json.loads(state))
    next(iter(resumed))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
