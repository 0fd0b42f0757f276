"""How full batches are, how even, how long images wait, and how fast that is decided.

    python benchmarks/packing.py 'SHARDS/*.tar'
    python benchmarks/packing.py 'SHARDS/*.tar' --samples 10000 --budget 16384

Sizes are those of the shards' images, over and over until there are enough samples; sides U(64, 256), patches
of 16 pixels, drop rates Beta with mean 1/2. Rates are of the packer alone, in CPU time of one core: the best
of five rounds, since all that a busy machine can do is to slow one down.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np

from navit_clip.data import DataConfig, DropConfig, Packer, ResolutionConfig, read_samples
from navit_clip.data.drawn import draw_size
from navit_clip.data.images import EncodedImage
from navit_clip.data.lines import Lines
from navit_clip.data.packing import STAND_BACK, Cut
from navit_clip.errors import SampleError

PATCH_SIZE = 16
DATA = DataConfig(
    shards=["SHARDS"],
    resolution=ResolutionConfig(min_side=64, max_side=256),
    drop=DropConfig(kind="beta", rate=0.5),
)
ROUNDS = 5


def main() -> None:
    """Prints a row for each way of packing."""
    arguments = _parser().parse_args()
    lengths = drawn_lengths(sizes(arguments.shards), arguments.samples)
    print(f"{len(lengths)} samples, {np.mean(lengths):.1f} tokens in the mean, budget {arguments.budget}\n")
    columns = ("exact", "lookahead", "fill", "emptiest", "images a batch", "spread", "longest wait")
    columns += ("cut image loses", "images/s")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for exact in (False, True):
        for lookahead in (64, 256):
            print(row(lengths, arguments.budget, lookahead, exact))


def row(lengths: Sequence[int], budget: int, lookahead: int, exact: bool) -> str:
    """What packing these lengths comes to, without the last batches, for which nothing waits."""
    batches = pack(lengths, budget, lookahead, exact)
    fill = [sum(batch.lengths) / budget for batch in batches]
    images = [len(batch.items) for batch in batches]
    lost = [
        1 - length / lengths[item]
        for batch in batches
        for item, length in zip(batch.items, batch.lengths, strict=True)
    ]
    rate = len(lengths) / min(_seconds(lengths, budget, lookahead, exact) for _ in range(ROUNDS))
    return (
        f"| {'yes' if exact else 'no'} | {lookahead} | {100 * np.mean(fill):.3f} % | {100 * min(fill):.2f} % "
        f"| {np.mean(images):.1f} | {100 * np.std(images) / np.mean(images):.1f} % "
        f"| {longest_wait(lengths, budget, lookahead, exact)} of {lookahead + (STAND_BACK if exact else 0)} "
        f"| {100 * sum(lost) / len(batches):.1f} % | {rate:,.0f} |"
    )


def pack(lengths: Sequence[int], budget: int, lookahead: int, exact: bool) -> list[Cut[int]]:
    """Every batch that is cut because it is ready."""
    packer: Packer[int] = Packer(budget, lookahead, exact)
    batches = []
    for item, length in enumerate(lengths):
        packer.add(item, length)
        while packer.ready:
            batches.append(packer.cut())
    return batches


def longest_wait(lengths: Sequence[int], budget: int, lookahead: int, exact: bool) -> int:
    """Batches that the item which waited longest let go by."""
    line: Lines[int] = Lines(lambda: Packer(budget, lookahead, exact), math.inf)
    longest = 0
    for item, length in enumerate(lengths):
        line.add(0, item, length)
        while batch := line.cut():
            longest = max(longest, batch.longest_wait)
    return longest


def sizes(shards: Sequence[str]) -> list[tuple[int, int]]:
    """Height and width of every image that can be read."""
    found = []
    for sample in read_samples(shards):
        try:
            image = EncodedImage(sample.image)
        except SampleError:
            continue
        found.append((image.height, image.width))
    return found


def drawn_lengths(of: Sequence[tuple[int, int]], number: int) -> list[int]:
    """Patches that stay of images of these sizes, as training would draw them."""
    random, lengths = np.random.default_rng(0), []
    order = np.concatenate([random.permutation(len(of)) for _ in range(-(-number // len(of)))])
    for index in order[:number]:
        height, width = of[index]
        lengths.append(draw_size(DATA, random, 0.0, height, width, PATCH_SIZE).num_kept)
    return lengths


def _seconds(lengths: Sequence[int], budget: int, lookahead: int, exact: bool) -> float:
    start = time.process_time()
    pack(lengths, budget, lookahead, exact)
    return time.process_time() - start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", nargs="+", help="patterns of tar files")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--budget", type=int, default=16_384)
    return parser


if __name__ == "__main__":
    main()
