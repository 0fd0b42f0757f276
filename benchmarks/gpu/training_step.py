"""Utilisation and memory of whole steps on batches as the b16 run draws them, from real tokens alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import turns
from benchmarks.gpu.batches import draw_batch
from benchmarks.gpu.rows import Measure
from benchmarks.graphs import CountedGraphs
from benchmarks.peers.contender import Machine
from benchmarks.peers.steps import model_config, packed_step
from benchmarks.peers.workload import SIZES
from navit_clip.batch import Batch
from navit_clip.distributed import World
from navit_clip.model import ClipConfig, choose_backend
from training.engine import EngineConfig
from training.optimizer import OptimizerConfig
from training.utilisation import model_flops, peak_flops

BUDGET = {"tiny": 512, "b16": 65536, "l16": 49152}
"""Image tokens of a batch by size: what 80 GB hold without activation checkpoints."""
BATCHES, ROUNDS = 4, 8
GIB = 2**30


def step_rows(size: str, world: World) -> dict[str, Measure]:
    """As it is, with activation checkpoints, and compiled."""
    machine = Machine.here()
    choose_backend("auto", machine.device, machine.dtype)
    if machine.device.type == "cpu":  # traced there, and not compiled: that takes a minute
        torch.compile = partial(torch.compile, backend="eager")
    plain = model_config(SIZES[size])
    plain = replace(plain, image=replace(plain.image, biases=False), text=replace(plain.text, biases=False))
    checkpointed = replace(
        plain,
        image=replace(plain.image, checkpoint_blocks=True),
        text=replace(plain.text, checkpoint_blocks=True),
    )
    batches = [draw_batch(BUDGET[size], seed) for seed in range(BATCHES)]
    ways = {"plain": (plain, False), "checkpoints": (checkpointed, False), "compiled": (plain, True)}
    return {
        f"{size}, {name}": partial(step_row, model, compiled, batches, machine, world)
        for name, (model, compiled) in ways.items()
    }


def step_row(
    model: ClipConfig, compiled: bool, batches: list[Batch], machine: Machine, world: World
) -> dict[str, Any]:
    """Steps over different batches in turn, so that lengths and numbers of pairs change from step to step."""
    torch.manual_seed(0)
    precision = "fp32" if machine.dtype == torch.float32 else "bf16"
    step = CountedGraphs(
        packed_step(model, batches, EngineConfig(precision=precision, compile=compiled), world)
    )
    step()
    assert (step.first > 0) == compiled, f"{step.first} graphs were compiled at the first step"
    for _ in batches[1:]:
        step()
    seconds = turns.take_turns({"": step}, ROUNDS, machine.device)[""].seconds
    memory = turns.peak_memory(step, machine.device)
    flops = sum(model_flops(model, OptimizerConfig(), batch) for batch in batches) / len(batches)
    return {
        "milliseconds": 1e3 * seconds,
        "pairs_per_second": sum(map(len, batches)) / len(batches) / seconds,
        "flops_utilisation": flops / seconds / peak_flops(machine.device, machine.dtype),
        "activations_and_gradients_gib": memory / GIB,
        **(step.row if compiled else {}),
    }
