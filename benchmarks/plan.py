"""`navit-clip plan` beside what was measured: memory and step time for models, ZeRO stages and ranks.

    python -m benchmarks.plan --size s16 --ranks 1 2
    python -m benchmarks.plan --size s16 --ranks 1 2 --memory

Each case trains in processes of its own, one a rank, in fp32 on images of 224 px and captions of 16 tokens,
through the training loop's own step. Memory is the most that rank 0 held beyond what it held before the
model was made, in a run in which freed memory goes back at once; time is that of a run that keeps it, after
two steps to warm up. The machine's rates are those that `--gpu this` takes, on as many threads as a rank has,
by as many processes at once as there are ranks. They are taken before and after every two steps, since they
may change from minute to minute, and the second of these stands beside the mean of what the two plan; medians
of all. The first is not timed: a virtual machine may have given away what memory was free for some seconds,
and gets it back slowly, where steps that follow each other find it.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

from benchmarks import turns
from benchmarks.peers.steps import make_batch, model_config, packed_step
from benchmarks.peers.workload import CASES, PATCH_SIZE, SIZES, draw_captions, draw_pictures
from benchmarks.ranks import on_ranks
from navit_clip.data import DataConfig, ResolutionConfig
from navit_clip.distributed import World
from training.config import RunConfig
from training.engine import EngineConfig
from training.plan.hardware import Hardware, measured_here
from training.plan.memory import memory_of
from training.plan.step_time import step_time
from training.plan.workload import Workload, draw_lengths, typical_sizes, workload_of

MIB = 2**20
CAPTION_TOKENS = 16
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""glibc's: large blocks are mapped one by one and unmapped when they are freed."""


class Trial(NamedTuple):
    """One case to measure, and what a rank of it does."""

    size: str
    stage: int
    images: int
    steps: int
    threads: int


class Found(NamedTuple):
    """What rank 0 saw."""

    memory: int
    seconds: list[float]
    """Of each step."""
    hardware: list[Hardware]
    """Before the first step and after each that is timed."""


def main() -> None:
    arguments = _parser().parse_args()
    print(f"torch {torch.__version__}, {arguments.size}, {arguments.images} images a rank and step, fp32\n")
    columns = (
        "ranks",
        "ZeRO",
        "memory planned" if arguments.memory else "step planned",
        "measured",
        "off by",
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for num_ranks in arguments.ranks:
        for stage in arguments.stages:
            threads = max(1, torch.get_num_threads() // num_ranks)
            trial = Trial(arguments.size, stage, arguments.images, arguments.steps, threads)
            if arguments.memory:
                found = measure(trial._replace(steps=0), num_ranks, RETURN_FREED)
                print(memory_row(trial, num_ranks, found.memory), flush=True)
            else:
                print(time_row(trial, num_ranks, measure(trial, num_ranks, {})), flush=True)


def memory_row(trial: Trial, num_ranks: int, held: int) -> str:
    """Planned beside measured."""
    config = run_config(trial)
    planned = memory_of(config, workload(config), num_ranks, device_type="cpu").peak
    return (
        f"| {num_ranks} | {trial.stage} | {planned / MIB:.0f} MiB | {held / MIB:.0f} MiB "
        f"| {planned / held - 1:+.0%} |"
    )


def time_row(trial: Trial, num_ranks: int, found: Found) -> str:
    """Planned beside measured."""
    config = run_config(trial)
    load = workload(config)
    rates = [step_time(config, load, num_ranks, hardware).total for hardware in found.hardware]
    planned = [statistics.mean(pair) for pair in pairwise(rates)]
    off = statistics.median(plan / took for plan, took in zip(planned, found.seconds, strict=True)) - 1
    return (
        f"| {num_ranks} | {trial.stage} | {statistics.median(planned):.2f} s "
        f"| {statistics.median(found.seconds):.2f} s | {off:+.0%} |"
    )


def workload(config: RunConfig) -> Workload:
    """Of images all alike."""
    lengths = draw_lengths(config, typical_sizes())
    return workload_of(config, lengths, config.data.tokens_per_batch, CAPTION_TOKENS)


def run_config(trial: Trial) -> RunConfig:
    """What `navit-clip plan` would be given."""
    side = CASES["equal"].sides[0]
    tokens = trial.images * (side // PATCH_SIZE) ** 2
    resolution = ResolutionConfig(min_side=side, max_side=side, shape="square")
    return RunConfig(
        folder="",
        pairs=10**6,
        tokenizer="",
        model=model_config(SIZES[trial.size]),
        data=DataConfig(shards=["-"], resolution=resolution, tokens_per_batch=tokens),
        engine=EngineConfig(precision="fp32", zero_stage=trial.stage),
    )


def measure(trial: Trial, num_ranks: int, environment: dict[str, str]) -> Found:
    """Trains in processes of their own."""
    return on_ranks(num_ranks, train, trial, threads=trial.threads, environment=environment)[0]


def train(world: World, trial: Trial) -> Found:
    """One rank of a trial."""
    warnings.simplefilter("ignore")  # DeepSpeed's, of torch's newer names
    config = run_config(trial)
    small = make_step(trial._replace(size="tiny", images=1), world)
    small()  # what libraries set up once is no model's
    del small
    before = turns.resident("VmRSS")
    turns.forget_high_water_mark()
    step = make_step(trial, world)
    for _ in range(2):  # the second has the optimizer's moments from its start
        step()
    held = turns.resident("VmHWM") - before
    load = workload(config)
    world.barrier()
    hardware, seconds = [measured_here(load, world, config.engine.precision)], []
    for _ in range(trial.steps):
        step()
        world.barrier()
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
        world.barrier()
        hardware.append(measured_here(load, world, config.engine.precision))
    return Found(held, seconds, hardware)


def make_step(trial: Trial, world: World) -> Callable[[], object]:
    """The training loop's step on a rank's own noise."""
    images = draw_pictures(CASES["equal"], trial.images, seed=world.rank)
    captions = draw_captions(trial.images, CAPTION_TOKENS, seed=world.rank)
    engine = EngineConfig(precision="fp32", zero_stage=trial.stage)
    return packed_step(model_config(SIZES[trial.size]), [make_batch(images, captions)], engine, world)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="s16")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--images", type=int, default=4, help="pairs a rank and step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--memory", action="store_true", help="memory instead of time")
    return parser


if __name__ == "__main__":
    main()
