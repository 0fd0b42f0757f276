"""How fast images become patches, beside open_clip's training transform; and what speed costs in quality.

    python benchmarks/decode.py SHARD.tar ... [--tokens 65536]

One process, one core, the same images in the same order. open_clip's transform makes 224 x 224 of each; ours
draws a side from 64 to 256 px for each, decodes, resizes and cuts it, and does the same once more for a
fixed 224 x 224. All take turns, and medians over the rounds are printed: what else the machine does falls on
all alike. Quality is the PSNR of our resized image against Pillow's full decoding and antialiased bicubic
resize.

Then the whole loader: images a second out of a TrainLoader with two workers, over what two processes reach
that decode, resize and cut the very same images to the same grids side by side, each on its own. By the
clock, which on a busy machine says little; and by CPU time: decoding, resizing and cutting is this share of
what all the loader's processes take, the one that takes the batches included. And over twice open_clip's rate
above, whose transform alone, without reading or batching, had a core to itself.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
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
LEAST_BATCHES = 16
"""That a round takes from the loader: what workers have begun when it starts and ends is little of these."""


def main() -> None:
    """Prints the rates, their ratios and the quality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards", nargs="+", help="patterns of tar files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=0, help="how many to take; 0 takes all")
    tokens_help = "the loader's tokens a batch; each batch costs it something beside its images"
    parser.add_argument("--tokens", type=int, default=4096, help=tokens_help)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {sample.key: sample.image for sample in read_samples(arguments.shards)}
    every = list(found.values())
    order = np.random.default_rng(0).permutation(len(every))
    images = [every[i] for i in order[: arguments.images or None]]
    random = np.random.default_rng(1)
    sides = random.integers(SIDES.min_side, SIDES.max_side, len(images), endpoint=True).tolist()
    print(f"{len(images)} images, {sum(map(len, images)) / len(images) / 1000:.1f} kB in the mean")

    transform: Any = image_transform(FIXED_SIDE, is_train=True)
    paths: dict[str, Callable[[bytes, int], object]] = {
        "open_clip": lambda data, side: transform(  # pyright: ignore[reportCallIssue]
            Image.open(io.BytesIO(data)).convert("RGB")
        ),
        "drawn": lambda data, side: patches_of_tokens(data, tokens_of_side(side, PATCH_SIZE)),
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
    rate = print_loader(arguments.shards, found, len(images), arguments.rounds, arguments.tokens)
    transforms = 2 * len(images) / medians["open_clip"]
    print(f"the loader's two workers: {rate / transforms:.2f} x open_clip's transform on two cores")


def patches_of_tokens(data: bytes, num_tokens: int) -> object:
    """What a training stream makes of an image that may have so many patches."""
    image = EncodedImage(data)
    grid = grid_for(image.height, image.width, PATCH_SIZE, num_tokens)
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


def print_loader(
    shards: list[str], images: Mapping[str, bytes], number: int, rounds: int, tokens: int
) -> float:
    """Wall and CPU time, in turns: the loader's two workers, and two processes without a loader.

    Returns:
        Images a second out of the loader.
    """
    config = DataConfig(
        shards=shards,
        caption_key="json.classname",
        resolution=SIDES,
        tokens_per_batch=tokens,
        num_workers=2,
    )
    loader = TrainLoader(config, train_tokenizer(["a"], 512), PATCH_SIZE, 16, seed=0)
    batches = iter(loader)
    next(batches)
    loaders = [psutil.Process(), *psutil.Process().children()]  # the pool has not begun
    ready = config.num_workers * (config.prefetch + 1)
    rates: dict[str, list[float]] = {"loader": [], "processes": []}
    seconds: dict[str, list[float]] = {"loader": [], "consumer": [], "processes": []}  # of CPU, an image
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(rate_of, [list(zip(images.values(), [9] * 40, strict=False))] * 2))
        for _ in range(rounds):
            for _ in range(ready):
                next(batches)  # what was ready before the clock starts
            keys: list[str] = []
            grids: list[torch.Tensor] = []
            start, before = time.perf_counter(), cpu_of(loaders)
            while len(keys) < number or len(grids) < LEAST_BATCHES:
                batch = next(batches)
                keys += batch.keys
                grids.append(batch.images.grid.clone())  # which does not hold the batch's block
            rates["loader"].append(len(keys) / (time.perf_counter() - start))
            taken = [now - then for now, then in zip(cpu_of(loaders), before, strict=True)]
            lengths = torch.cat(grids).prod(1).tolist()
            jobs = [(images[key], length) for key, length in zip(keys, lengths, strict=True)]
            seconds["loader"].append(sum(taken) / len(jobs))
            seconds["consumer"].append(taken[0] / len(jobs))
            time.sleep(1)  # until the workers are ahead, and rest
            measured = list(pool.map(rate_of, [jobs[::2], jobs[1::2]]))
            rates["processes"].append(sum(rate for rate, _ in measured))
            seconds["processes"].append(statistics.mean(cpu for _, cpu in measured))
    shares = [loader / alone for loader, alone in zip(rates["loader"], rates["processes"], strict=True)]
    print(
        f"loader, 2 workers: {statistics.median(rates['loader']):.0f} images/s, "
        f"{100 * statistics.median(shares):.0f} % of two processes (wanted 90)"
    )
    loader_cpu, consumer, alone = (1e6 * statistics.median(values) for values in seconds.values())
    shares = [alone / loader for alone, loader in zip(seconds["processes"], seconds["loader"], strict=True)]
    print(
        f"by CPU time: {100 * statistics.median(shares):.0f} %; of {loader_cpu:.0f} microseconds an image, "
        f"{alone:.0f} are decoding, resizing and cutting, {consumer:.0f} the consumer's"
    )
    return statistics.median(rates["loader"])


def cpu_of(processes: Sequence[psutil.Process]) -> list[float]:
    """CPU seconds so far of each process."""
    return [times.user + times.system for times in (process.cpu_times() for process in processes)]


def rate_of(jobs: Sequence[tuple[bytes, int]]) -> tuple[float, float]:
    """Images a second of one process alone, and its CPU seconds an image."""
    torch.set_num_threads(1)
    start, cpu = time.perf_counter(), time.process_time()
    for data, num_tokens in jobs:
        patches_of_tokens(data, num_tokens)
    return len(jobs) / (time.perf_counter() - start), (time.process_time() - cpu) / len(jobs)


if __name__ == "__main__":
    main()
