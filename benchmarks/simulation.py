"""How even the ranks of a large run are: fill, compute and pairs of every rank's batch, from 8 to 4096 ranks.

    python -m benchmarks.simulation configs/run/b16.yaml --shards 'SHARDS/*.tar'
    python -m benchmarks.simulation configs/run/b16.yaml --sizes SIZES.txt
    python -m benchmarks.simulation configs/run/b16.yaml

Sizes are those of the images in shards, or of a file with a height and a width a line, or without either of
typical shapes (`training/plan/workload.py` says which). What is drawn for each image is drawn as the run's
own config says; every rank has a packer of the project's own, which cuts its batches one after the other.

The compute of a batch is its towers' floating-point operations, forward and backward, captions of random
lengths included. A step is as slow as its slowest rank, so imbalance is the largest rank over the mean, less
one; it is the mean over steps. Efficiency is a step of one node over a step of so many ranks, by the model of
`navit-clip plan`, with the slowest rank in the place of the mean one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.packing import sizes
from benchmarks.peers.workload import CAPTION_LENGTHS
from navit_clip.config import load_config
from navit_clip.data import Packer
from navit_clip.model.flops import image_tower_flops, text_tower_flops
from training.config import RunConfig, add_run_arguments
from training.plan.hardware import GPUS
from training.plan.step_time import step_time
from training.plan.workload import draw_lengths, typical_sizes, workload_of

RANKS = (8, 64, 512, 1024, 4096)
POOL = 200_000
"""Images drawn; every rank draws from them on its own."""


def main() -> None:
    arguments = _parser().parse_intermixed_args()
    config = load_config(RunConfig, arguments.config, ["data.shards=[SHARDS]", *arguments.overrides])
    of = image_sizes(arguments)
    lengths = draw_lengths(config, of, POOL).numpy()
    print(
        f"{len(of)} sizes, {lengths.mean():.1f} patches in the mean, standard deviation {lengths.std():.1f}; "
        f"budget {config.data.tokens_per_batch}, lookahead {config.data.lookahead}, {arguments.steps} steps\n"
    )
    columns = ("ranks", "fill", "emptiest", "pairs a rank", "spread", "compute imbalance", "pairs' imbalance")
    columns += (f"step on {arguments.gpu}", "efficiency")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    alone = None
    for num_ranks in arguments.ranks:
        row = simulate(config, lengths, num_ranks, arguments.steps)
        seconds = seconds_of(config, lengths, num_ranks, arguments.gpu, row["imbalance"])
        alone = alone or seconds
        print(
            f"| {num_ranks} | {row['fill']:.3%} | {row['emptiest']:.2%} | {row['pairs']:.1f} "
            f"| {row['spread']:.2%} | {row['imbalance']:.2%} | {row['pairs_imbalance']:.1%} "
            f"| {seconds:.4f} s | {alone / seconds:.0%} |",
            flush=True,
        )


def simulate(config: RunConfig, lengths: np.ndarray, num_ranks: int, steps: int) -> dict[str, float]:
    """What so many ranks' batches come to over some steps."""
    budget = config.data.tokens_per_batch
    compute, pairs, tokens = (np.empty((num_ranks, steps)) for _ in range(3))
    for rank in range(num_ranks):
        random = np.random.default_rng([1, rank])
        for step, batch in zip(range(steps), batches(config, lengths, random), strict=False):
            captions = random.choice(CAPTION_LENGTHS, len(batch))
            compute[rank, step] = flops(config, batch, captions)
            pairs[rank, step], tokens[rank, step] = len(batch), batch.sum()
    fill = tokens / budget
    return {
        "fill": fill.mean(),
        "emptiest": fill.min(),
        "pairs": pairs.mean(),
        "spread": pairs.std() / pairs.mean(),
        "imbalance": (compute.max(axis=0) / compute.mean(axis=0) - 1).mean(),
        "pairs_imbalance": (pairs.max(axis=0) / pairs.mean(axis=0) - 1).mean(),
    }


def batches(config: RunConfig, lengths: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Lengths of the images of each batch that one packer cuts."""
    data = config.data
    packer: Packer[int] = Packer(
        data.tokens_per_batch, data.lookahead, data.exact_fill, data.max_images, data.max_text_tokens
    )
    while True:
        for length in random.choice(lengths, 4096).tolist():
            packer.add(length, length)
            while packer.ready:
                yield np.array(packer.cut().lengths)


def flops(config: RunConfig, lengths: np.ndarray, captions: np.ndarray) -> float:
    """Operations of both towers on one batch."""
    model = config.model
    images = image_tower_flops(model.image, torch.from_numpy(lengths), backward=True)
    return images + text_tower_flops(model.text, model.image.width, torch.from_numpy(captions), backward=True)


def seconds_of(config: RunConfig, lengths: np.ndarray, num_ranks: int, gpu: str, imbalance: float) -> float:
    """Of a step, with the slowest rank's towers in the place of the mean ones."""
    mean = round(float(np.mean(CAPTION_LENGTHS)))
    workload = workload_of(config, torch.from_numpy(lengths), config.data.tokens_per_batch, mean)
    time = step_time(config, workload, num_ranks, GPUS[gpu])
    return replace(time, towers=time.towers * (1 + imbalance)).total


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
