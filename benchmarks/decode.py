"""How fast images become patches, beside open_clip's training transform; and what speed costs in quality.

    python benchmarks/decode.py SHARD.tar ...

One process, one core, the same images in the same order. open_clip's transform makes 224 x 224 of each; ours
draws a side from 64 to 256 px for each, decodes, resizes and cuts it, and does the same once more for a
fixed 224 x 224. All take turns, and medians over the rounds are printed: what else the machine does falls on
all alike. Quality is the PSNR of our resized image against Pillow's full decoding and antialiased bicubic
resize.

Then the whole loader: images a second out of a TrainLoader with two workers, over what two processes reach
that decode, resize and cut side by side, each on its own. By the clock, which on a busy machine says little;
and by CPU time: decoding, resizing and cutting is this share of what all the loader's processes take.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import psutil
import torch
from open_clip.transform import image_transform
from PIL import Image

from navit_clip.data import DataConfig, ResolutionConfig, TrainLoader, grid_for, read_samples, tokens_of_side
from navit_clip.data.images import EncodedImage
from navit_clip.data.patches import cut_grid
from navit_clip.tokenizer import train_tokenizer

PATCH_SIZE = 16
SIDES = ResolutionConfig(min_side=64, max_side=256)
FIXED_SIDE = 224
WANTED = {"drawn": 3.3, "fixed": 1.3}
"""How many times open_clip's rate the two of ours are to reach."""

Images = Sequence[bytes]


def main() -> None:
    """Prints the rates, their ratios and the quality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards", nargs="+", help="patterns of tar files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=0, help="how many to take; 0 takes all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = [sample.image for sample in read_samples(arguments.shards)]
    order = np.random.default_rng(0).permutation(len(images))
    images = [images[i] for i in order[: arguments.images or None]]
    random = np.random.default_rng(1)
    sides = random.integers(SIDES.min_side, SIDES.max_side, len(images), endpoint=True).tolist()
    print(f"{len(images)} images, {sum(map(len, images)) / len(images) / 1000:.1f} kB in the mean")

    transform: Any = image_transform(FIXED_SIDE, is_train=True)
    paths: dict[str, Callable[[bytes, int], object]] = {
        "open_clip": lambda data, side: transform(  # pyright: ignore[reportCallIssue]
            Image.open(io.BytesIO(data)).convert("RGB")
        ),
        "drawn": patches_of_side,
        "fixed": lambda data, side: patches_of_grid(EncodedImage(data), *[FIXED_SIDE // PATCH_SIZE] * 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(arguments.rounds):
        for name, path in paths.items():
            start = time.process_time()
            for data, side in zip(images, sides, strict=True):
                path(data, side)
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        wanted = f" (wanted {WANTED[name]})" if name in WANTED else ""
        ratio = medians["open_clip"] / value
        print(f"{name:10} {len(images) / value:7.0f} images/s a core   {ratio:.2f} x open_clip{wanted}")

    decibels = [quality(data, side) for data, side in zip(images, sides, strict=True)]
    low, median = np.percentile(decibels, [5, 50])
    print(f"PSNR: median {median:.1f} dB, 5th percentile {low:.1f} dB (wanted 35 and 28)")
    print_loader(arguments.shards, images, sides, arguments.rounds)


def patches_of_side(data: bytes, side: int) -> object:
    """What a training stream makes of an image whose side was drawn."""
    image = EncodedImage(data)
    grid = grid_for(image.height, image.width, PATCH_SIZE, tokens_of_side(side, PATCH_SIZE))
    return patches_of_grid(image, *grid)


def patches_of_grid(image: EncodedImage, rows: int, columns: int) -> object:
    return cut_grid(image.decode((rows * PATCH_SIZE, columns * PATCH_SIZE)), PATCH_SIZE, (rows, columns))


def quality(data: bytes, side: int) -> float:
    """PSNR in dB of what training sees, against the best that is known."""
    image = EncodedImage(data)
    grid = grid_for(image.height, image.width, PATCH_SIZE, tokens_of_side(side, PATCH_SIZE))
    height, width = (PATCH_SIZE * count for count in grid)
    ours = cut_grid(image.decode((height, width)), PATCH_SIZE, grid).pixels
    best = Image.fromarray(EncodedImage(data).decode()).resize((width, height), Image.Resampling.BICUBIC)
    tiles = np.asarray(best).reshape(grid[0], PATCH_SIZE, grid[1], PATCH_SIZE, 3).swapaxes(1, 2)
    error = np.square(ours.astype(float) - tiles.reshape(ours.shape)).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def print_loader(shards: list[str], images: Images, sides: list[int], rounds: int) -> None:
    """Wall and CPU time, in turns: the loader's two workers, and two processes without a loader."""
    config = DataConfig(shards=shards, caption_key="json.classname", resolution=SIDES, num_workers=2)
    loader = TrainLoader(config, train_tokenizer(["a"], 512), PATCH_SIZE, 16, seed=0)
    batches = iter(loader)
    count = sum(len(batch) for batch in islice(batches, 40))  # both workers are at work
    rates: dict[str, list[float]] = {"loader": [], "processes": []}
    seconds: dict[str, list[float]] = {"loader": [], "processes": []}  # of CPU, an image
    workers = psutil.Process().children()  # the pool has not begun
    half = len(images) // 2
    with ProcessPoolExecutor(2) as pool:
        jobs = [(images[:half], sides[:half]), (images[half:], sides[half:])]
        list(pool.map(rate_of, [(images[:2], sides[:2])] * 2))
        for _ in range(rounds):
            measured = list(pool.map(rate_of, jobs))
            rates["processes"].append(sum(rate for rate, _ in measured))
            seconds["processes"].append(statistics.mean(cpu for _, cpu in measured))
            for _ in islice(batches, 2 * config.num_workers * (config.prefetch + 1)):
                pass  # what was ready before the clock starts
            start, cpu, count = time.perf_counter(), cpu_of(workers), 0
            while count < len(images):
                count += len(next(batches))
            rates["loader"].append(count / (time.perf_counter() - start))
            seconds["loader"].append((cpu_of(workers) - cpu) / count)
    loader_rate, processes_rate = (statistics.median(rates[name]) for name in ("loader", "processes"))
    share = 100 * loader_rate / processes_rate
    print(f"loader, 2 workers: {loader_rate:.0f} images/s, {share:.0f} % of two processes (wanted 90)")
    cpu_share = statistics.median(seconds["processes"]) / statistics.median(seconds["loader"])
    print(f"by CPU time, the consumer's included: {100 * cpu_share:.0f} %")


def cpu_of(workers: Sequence[psutil.Process]) -> float:
    """CPU seconds so far, of worker processes and of this one."""
    times = [process.cpu_times() for process in (psutil.Process(), *workers)]
    return sum(each.user + each.system for each in times)


def rate_of(job: tuple[Images, list[int]]) -> tuple[float, float]:
    """Images a second of one process alone, and its CPU seconds an image."""
    torch.set_num_threads(1)
    start, cpu = time.perf_counter(), time.process_time()
    for data, side in zip(*job, strict=True):
        patches_of_side(data, side)
    number = len(job[0])
    return number / (time.perf_counter() - start), (time.process_time() - cpu) / number


if __name__ == "__main__":
    main()
