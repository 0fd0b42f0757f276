"""How even the ranks of a large run are: fill, compute and pairs of every rank's batch, from 8 to 4096 ranks.

    python -m benchmarks.simulation configs/run/b16.yaml --shards 'SHARDS/*.tar'
    python -m benchmarks.simulation configs/run/b16.yaml --sizes SIZES.txt
    python -m benchmarks.simulation configs/run/b16.yaml

Sizes are those of the images in shards, or of a file with a height and a width a line, or without either of
typical shapes (`training/plan/workload.py` says which). What is drawn for each image is drawn as the run's
own config says; every rank packs as its stream does: pairs come with captions of random lengths and wait in
the project's own lines, which cut batches one after the other. (A rank's workers are streams of their own;
here it is one.)

A rank's seconds are those of its towers on its own batch, by the model of `navit-clip plan`. A step is as
slow as its slowest rank, so imbalance is the largest rank over the mean, less one; it is the mean over steps.
Pairs have their own: at every hop the loss's ring waits for the rank that has most. Efficiency is a step of
the first number of ranks over a step of so many, with both waits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.packing import sizes
from benchmarks.peers.workload import CAPTION_LENGTHS
from navit_clip.config import load_config
from navit_clip.data import Packer
from navit_clip.data.config import line_patience
from navit_clip.data.drawn import DrawnSize
from navit_clip.data.lines import Lines
from training.config import RunConfig, add_run_arguments
from training.plan.hardware import GPUS, Hardware
from training.plan.step_time import Waits, step_time, towers_time
from training.plan.workload import Workload, draw_images, typical_sizes

RANKS = (8, 64, 512, 1024, 4096)
POOL = 200_000
"""Images drawn; every rank draws from them on its own."""


WARM_UP = 16
"""Batches that several lines cut before any counts: all ranks' first are of the longest images."""


class Pair(NamedTuple):
    """As far as packing knows it."""

    image_tokens: int
    text_tokens: int


class Row(NamedTuple):
    """What so many ranks' batches come to over some steps."""

    mean: Workload
    fill: float
    emptiest: float
    spread: float
    """Standard deviation of pairs over their mean."""
    waits: Waits


def main() -> None:
    arguments = _parser().parse_intermixed_args()
    config = load_config(RunConfig, arguments.config, ["data.shards=[SHARDS]", *arguments.overrides])
    config.data.check_budget(config.model.image.patch_size, config.model.text.context_length)
    of = image_sizes(arguments)
    pool = draw_images(config, of, POOL)
    lengths = np.array([size.num_kept for size in pool])
    print(
        f"{len(of)} sizes, {lengths.mean():.1f} patches in the mean, standard deviation {lengths.std():.1f}; "
        f"budget {config.data.tokens_per_batch}, lookahead {config.data.lookahead}, {arguments.steps} steps\n"
    )
    columns = ("ranks", "fill", "emptiest", "pairs a rank", "spread", "towers' imbalance", "pairs' imbalance")
    columns += (f"step on {arguments.gpu}", "of which waiting", "efficiency")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    alone, gpu = None, GPUS[arguments.gpu]
    for num_ranks in arguments.ranks:
        row = simulate(config, pool, num_ranks, arguments.steps, gpu)
        even, seconds = (
            step_time(config, row.mean, num_ranks, gpu, waits).total for waits in (Waits(), row.waits)
        )
        alone = alone or seconds
        print(
            f"| {num_ranks} | {row.fill:.3%} | {row.emptiest:.2%} | {row.mean.pairs:.1f} | {row.spread:.2%} "
            f"| {row.waits.towers:.2%} | {row.waits.pairs:.1%} | {seconds:.4f} s | {1 - even / seconds:.1%} "
            f"| {alone / seconds:.0%} |",
            flush=True,
        )


def simulate(config: RunConfig, pool: Sequence[DrawnSize], num_ranks: int, steps: int, gpu: Hardware) -> Row:
    """Batches of so many ranks, each for itself."""
    seconds, pairs, tokens, words = (np.empty((num_ranks, steps)) for _ in range(4))
    for rank in range(num_ranks):
        random = np.random.default_rng([1, rank])
        for step, batch in zip(range(steps), batches(config, pool, random), strict=False):
            lengths, captions = np.array(batch).T
            pairs[rank, step], tokens[rank, step], words[rank, step] = (
                len(batch),
                lengths.sum(),
                captions.sum(),
            )
            workload = Workload(
                config.model, float(len(batch)), torch.tensor(lengths), float(captions.mean())
            )
            seconds[rank, step] = towers_time(config, workload, gpu)
    fill = tokens / config.data.tokens_per_batch
    kept = torch.tensor([size.num_kept for size in pool])
    return Row(
        mean=Workload(config.model, float(pairs.mean()), kept, float(words.sum() / pairs.sum())),
        fill=fill.mean(),
        emptiest=fill.min(),
        spread=pairs.std() / pairs.mean(),
        waits=Waits(towers=_imbalance(seconds), pairs=_imbalance(pairs)),
    )


def batches(
    config: RunConfig, pool: Sequence[DrawnSize], random: np.random.Generator
) -> Iterator[list[Pair]]:
    """Of one stream."""
    data, context = config.data, config.model.text.context_length
    patience = line_patience(data)
    lines: Lines[Pair] = Lines(
        lambda: Packer(
            data.tokens_per_batch, data.lookahead, data.exact_fill, data.max_images, data.max_text_tokens
        ),
        patience,
    )
    to_skip = 0 if patience == math.inf else WARM_UP
    while True:
        sizes = random.integers(len(pool), size=4096).tolist()
        captions = np.minimum(random.choice(CAPTION_LENGTHS, 4096), context).tolist()
        for number, caption in zip(sizes, captions, strict=True):
            size = pool[number]
            line = size.num_tokens if data.resolution.same_in_batch else 0
            lines.add(line, Pair(size.num_kept, caption), size.num_kept, caption)
            while batch := lines.cut():
                if to_skip:
                    to_skip -= 1
                    continue
                yield [
                    pair._replace(image_tokens=length)
                    for pair, length in zip(batch.items, batch.lengths, strict=True)
                ]


def _imbalance(values: np.ndarray) -> float:
    """The largest rank over the mean, less one, in the mean over steps; of [ranks, steps]."""
    return float((values.max(axis=0) / values.mean(axis=0) - 1).mean())


def image_sizes(arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """Height and width of every image that is given, or of typical ones."""
    if arguments.shards:
        return sizes(arguments.shards)
    if arguments.sizes:
        rows = np.loadtxt(arguments.sizes, dtype=int, ndmin=2)
        return [(height, width) for height, width in rows.tolist()]
    return typical_sizes()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_arguments(parser, example="configs/run/b16.yaml")
    parser.add_argument("--shards", nargs="+", help="patterns of tar files whose images' sizes are used")
    parser.add_argument("--sizes", type=Path, help="a file with a height and a width a line")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--gpu", choices=list(GPUS), default="h100")
    return parser


if __name__ == "__main__":
    main()
