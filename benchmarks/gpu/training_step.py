"""Utilisation and memory of whole steps on batches as the b16 run draws them, from real tokens alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks import turns
from benchmarks.gpu.batches import draw_batch
from benchmarks.peers.contender import Machine
from benchmarks.peers.steps import model_config, packed_step
from benchmarks.peers.workload import SIZES
from navit_clip.batch import Batch
from navit_clip.distributed import World
from navit_clip.model import ClipConfig, choose_backend
from training.engine import EngineConfig
from training.optimizer import OptimizerConfig
from training.utilisation import model_flops, peak_flops

BATCHES, ROUNDS = 4, 8
GIB = 2**30


def step_rows(size: str, world: World) -> list[dict[str, Any]]:
    """With and without activation checkpoints."""
    machine = Machine.here()
    choose_backend("auto", machine.device, machine.dtype)
    plain = model_config(SIZES[size])
    plain = replace(plain, image=replace(plain.image, biases=False), text=replace(plain.text, biases=False))
    checkpointed = replace(
        plain,
        image=replace(plain.image, checkpoint_blocks=True),
        text=replace(plain.text, checkpoint_blocks=True),
    )
    batches = [draw_batch(machine, seed) for seed in range(BATCHES)]
    return [
        step_row(f"{size}, {name}", model, batches, machine, world)
        for name, model in {"plain": plain, "checkpoints": checkpointed}.items()
    ]


def step_row(
    name: str, model: ClipConfig, batches: list[Batch], machine: Machine, world: World
) -> dict[str, Any]:
    """Steps over different batches in turn, so that lengths and numbers of pairs change from step to step."""
    torch.manual_seed(0)
    precision = "fp32" if machine.dtype == torch.float32 else "bf16"
    step = packed_step(model, batches, EngineConfig(precision=precision), world)
    for _ in batches:
        step()
    compiled_before = _compiled()
    seconds = turns.take_turns({name: step}, ROUNDS, machine.device)[name].seconds
    memory = turns.peak_memory(step, machine.device)
    flops = sum(model_flops(model, OptimizerConfig(), batch) for batch in batches) / len(batches)
    return {
        "name": name,
        "milliseconds": 1e3 * seconds,
        "pairs_per_second": sum(map(len, batches)) / len(batches) / seconds,
        "flops_utilisation": flops / seconds / peak_flops(machine.device, machine.dtype),
        "activations_gib": memory / GIB,
        "recompilations": _compiled() - compiled_before,
    }


def _compiled() -> int:
    """Graphs that torch.compile has made so far in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
