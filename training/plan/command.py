"""`navit-clip plan`: memory, time, data and cost of a run on so many GPUs, before any of them is asked for.

    navit-clip plan configs/run/b16.yaml --gpus 64 --gpu h100
    navit-clip plan configs/run/b16.yaml model.from=configs/model/l16.yaml data.tokens_per_batch=57344

The model, its assumptions and how near it came to what was measured: docs/scaling.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from navit_clip.config import load_config
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from training.config import RunConfig, add_run_arguments
from training.engine import OFFLOADS_FROM
from training.plan.hardware import GIB, GPUS, Hardware, measured_here
from training.plan.memory import Memory, memory_of
from training.plan.step_time import StepTime, step_time, uncounted
from training.plan.supply import supply_of
from training.plan.weights import all_weights
from training.plan.workload import Workload, draw_lengths, typical_sizes, workload_of
from training.utilisation import PEAKS

MIB = 2**20
HOUR = 3600.0

STAGES = (0, 1, 2, 3)

ENOUGH_PAIRS = 32768
"""Of a step."""
MOST_GPUS, MOST_TOKENS, MOST_PAIRS = 2**20, 2**40, 2**60
"""Far beyond anything that could be run, and far from where floating-point numbers end."""


def main(argv: Sequence[str]) -> int:
    """Prints the plan; the exit code is 0, also where the run does not fit, which it then says."""
    arguments = _parser().parse_intermixed_args(argv)
    # Shards may be anywhere: a plan reads none.
    config = load_config(RunConfig, arguments.config, ["data.shards=[SHARDS]", *arguments.overrides])
    for name, value, most in (
        ("--gpus", arguments.gpus, MOST_GPUS),
        ("--caption-tokens", arguments.caption_tokens, MOST_TOKENS),
        ("data.tokens_per_batch", config.data.tokens_per_batch, MOST_TOKENS),
        ("pairs", config.pairs, MOST_PAIRS),
    ):
        if not 1 <= value <= most:
            raise ConfigError(
                f"{name}: expected 1 to {most}, found {value if value < 10 * most else 'far more'}"
            )
    config.data.check_budget(config.model.image.patch_size, config.model.text.context_length)
    workload = workload_of(
        config, draw_lengths(config, typical_sizes()), config.data.tokens_per_batch, arguments.caption_tokens
    )
    if arguments.gpu in GPUS:
        hardware = GPUS[arguments.gpu]
    else:
        with World.join() as world:
            hardware = measured_here(workload, world, config.engine.precision, arguments.gpus)
    print("\n".join(plan(config, workload, arguments.gpus, hardware)))
    return 0


def plan(config: RunConfig, workload: Workload, num_ranks: int, hardware: Hardware) -> list[str]:
    """What the command says, line by line."""
    engine, on = config.engine, _device_type(hardware)
    memory = memory_of(config, workload, num_ranks, on)
    time = step_time(config, workload, num_ranks, hardware)
    pairs_per_step = engine.accumulation * workload.pairs * num_ranks
    seconds = config.pairs / pairs_per_step * time.total
    supply = supply_of(config, pairs_per_step / time.total, num_ranks, hardware)
    workers = max(1, config.data.num_workers)
    bound = f", DATA-BOUND with data.num_workers {workers}" if supply.cores_per_rank > workers else ""
    return [
        f"{num_ranks} x {hardware.name}: {all_weights(config).total / 1e6:.1f}M parameters, "
        f"ZeRO {engine.zero_stage}, {engine.precision}, {config.data.tokens_per_batch} image tokens a batch, "
        f"{engine.accumulation} a step",
        "",
        f"a batch      {workload.pairs:,.0f} pairs of {workload.image_tokens / workload.pairs:.1f} patches "
        f"and {workload.caption_tokens} caption tokens; a step has {pairs_per_step:,.0f} pairs",
        *(
            [f"             beyond {ENOUGH_PAIRS:,} pairs a step SigLIP gained nothing (2303.15343, table 5)"]
            if pairs_per_step > ENOUGH_PAIRS
            else []
        ),
        f"memory       {_size(memory.peak)} of {_size(hardware.memory)} a rank"
        + ("" if memory.peak <= hardware.memory else ": DOES NOT FIT"),
        *([f"host         {_size(memory.host)} a rank, offloaded"] if memory.host else []),
        _budget_line(config, workload, num_ranks, hardware),
        f"a step       {time.total:.3g} s: towers {time.towers:.3g}, loss {time.loss:.3g}, "
        f"exchange {time.exchange:.3g}, optimizer {time.optimizer:.3g}, hosts {time.hosts:.3g}",
        f"not counted  {'; '.join(['waiting for the slowest rank', *uncounted(config)])}",
        f"utilisation  {utilisation(time, hardware):.0%} of the peak on real tokens",
        f"the run      {config.pairs:,} pairs: {_duration(seconds)}, "
        f"{_number(seconds / HOUR * num_ranks)} GPU-hours, {config.pairs / pairs_per_step:,.0f} steps, "
        f"{supply.images_per_second:,.0f} pairs/s",
        f"data         {supply.cores_per_rank:.1f} cores a rank{bound}; "
        f"{supply.storage_rate / 1e9:.2f} GB/s from storage; {supply.shards:,} shards to see each sample "
        f"once, at least {supply.fewest_shards:,}, each for {config.data.blocks_per_shard} workers",
        "",
        "| ZeRO | weights | moments | gradients | activations | batches | loss | buffers | peak | step |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(config, stage, workload, num_ranks, hardware) for stage in STAGES),
    ]


def utilisation(time: StepTime, hardware: Hardware) -> float:
    """Model FLOP utilisation, as training's log lines count it."""
    names = [name for name in PEAKS if name.lower() == hardware.name]
    peak = PEAKS[names[0]] if names else hardware.product_rate
    return time.model_flops / time.total / peak


def largest_budget(config: RunConfig, workload: Workload, num_ranks: int, hardware: Hardware) -> int | None:
    """The most image tokens a batch that fit a rank, in whole 1024s; 0 where not even those of one do.

    None where any number fits, because data.max_images or max_text_tokens allows a batch no more pairs.
    """

    def of(thousands: int) -> Workload:
        return workload_of(config, workload.lengths, 1024 * thousands, workload.caption_tokens)

    def fits(thousands: int) -> bool:
        return memory_of(config, of(thousands), num_ranks, _device_type(hardware)).peak <= hardware.memory

    low, high = 0, 1
    while fits(high):
        if of(2 * high).pairs == of(high).pairs:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return 1024 * low


def _budget_line(config: RunConfig, workload: Workload, num_ranks: int, hardware: Hardware) -> str:
    budget = largest_budget(config, workload, num_ranks, hardware)
    if budget is None:
        most = workload_of(config, workload.lengths, MOST_TOKENS, workload.caption_tokens)
        caps = "(data.max_images, max_text_tokens)"
        return f"budget       any fits: a cap leaves {most.pairs:,.0f} pairs a batch {caps}"
    return f"budget       up to {budget:,} image tokens a batch fit" if budget else "budget       none fits"


def _row(config: RunConfig, stage: int, workload: Workload, num_ranks: int, hardware: Hardware) -> str:
    offloads = stage >= OFFLOADS_FROM[config.engine.offload_optimizer]
    place = {} if offloads else {"offload_optimizer": "none", "offload_folder": ""}
    staged = replace(config, engine=replace(config.engine, zero_stage=stage, **place))
    memory: Memory = memory_of(staged, workload, num_ranks, _device_type(hardware))
    parts = (
        memory.weights,
        memory.moments,
        max(memory.gradients),
        memory.activations,
        memory.batches,
        memory.loss,
        memory.buffers,
    )
    seconds = step_time(staged, workload, num_ranks, hardware).total
    return f"| {stage} | {' | '.join(map(_size, (*parts, memory.peak)))} | {seconds:.3g} s |"


def _device_type(hardware: Hardware) -> str:
    return "cpu" if hardware.name == "this" else "cuda"


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def _duration(seconds: float) -> str:
    """In the largest unit of which there is a whole one."""
    for unit, length in (("days", 24 * HOUR), ("hours", HOUR), ("minutes", 60)):
        if seconds >= length:
            return f"{_number(seconds / length)} {unit}"
    return f"{_number(seconds)} seconds"


def _number(value: float) -> str:
    """With three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="navit-clip plan", description="Memory, time, data and cost of a run, before it is started."
    )
    add_run_arguments(parser, example="configs/run/b16.yaml")
    parser.add_argument("--gpus", type=int, default=8, help="ranks, one a GPU (8)")
    parser.add_argument(
        "--gpu",
        choices=[*GPUS, "this"],
        default="h100",
        help="the GPU of each rank (h100); this: the CPU here, measured now, a rank a process",
    )
    parser.add_argument(
        "--caption-tokens", type=int, default=16, help="of a caption in the mean, its end token included (16)"
    )
    return parser
