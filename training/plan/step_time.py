"""Seconds of a step: the towers' work, the loss's ring, the gradients' way round, the optimizer.

Matrix products and attention run at their own rates; whatever goes through the towers value by value (norms,
GELU, residual sums, casts) at the rate of the memory. So utilisation is a result, not an assumption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from navit_clip.model import TOWERS
from navit_clip.model.blocks import TransformerConfig
from training.config import RunConfig
from training.plan.hardware import FP32, GELU_PASSES, NORM_PASSES, Hardware
from training.plan.memory import BUCKET, count_tensors, count_weights
from training.plan.workload import Workload

OVERLAPPED = {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.8}
"""Share of the towers' time behind which a ZeRO stage hides what it exchanges: DeepSpeed overlaps by
default at stage 3 alone, where the first weights still have to be there before anything can start."""

NEW_COPIES = {0: (0, 0), 1: (2, 2), 2: (2, 2), 3: (5, 4)}
"""How often a stage writes memory that it has only just obtained, as much as all trained weights take and as
much as a rank's share takes: from profiles of one rank on a CPU."""
HOOKS = {0: 0, 1: 1, 2: 1, 3: 2}
"""How often a stage's Python takes `hook_time` for a tensor."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step of one rank, all batches of it."""

    towers: float
    loss: float
    exchange: float
    """Of gradients and weights, as far as nothing hides it."""
    optimizer: float
    model_flops: float
    """Operations on real tokens, nothing computed twice."""

    @property
    def total(self) -> float:
        return self.towers + self.loss + self.exchange + self.optimizer


def step_time(config: RunConfig, workload: Workload, num_ranks: int, hardware: Hardware) -> StepTime:
    """What a step takes on so many ranks of this hardware."""
    trained, frozen = count_weights(config)
    batches = config.engine.accumulation
    towers = batches * towers_time(config, workload, hardware)
    stage = config.engine.zero_stage
    exchange = exchange_time(config, trained + frozen, trained, num_ranks, hardware)
    own = trained / (num_ranks if stage else 1)
    return StepTime(
        towers=towers,
        loss=loss_time(batches * workload.pairs, workload.model.image.width, num_ranks, hardware),
        exchange=max(0.0, exchange - OVERLAPPED[stage] * towers),
        optimizer=optimizer_time(own, trained, stage, hardware)
        + HOOKS[stage] * hardware.hook_time * count_tensors(config),
        model_flops=batches * workload.flops(_trained(config)),
    )


def towers_time(config: RunConfig, workload: Workload, hardware: Hardware) -> float:
    """Forward and backward of one batch; forward twice with accumulation, and again with checkpoints."""
    half = config.engine.precision == "bf16"
    backward = _trained(config)
    attention, operations = workload.attention_flops(backward), workload.flops(backward)
    by_value = 0.0
    for name, tokens in zip(TOWERS, (workload.image_tokens, workload.text_tokens), strict=True):
        tower: TransformerConfig = getattr(config.model, name)
        by_value += tokens * tower.depth * block_time(tower, half, hardware)
    seconds = (
        (operations - attention) / hardware.product_rate + attention / hardware.attention_rate + by_value
    )
    checkpoints = all(getattr(config.model, name).checkpoint_blocks for name in TOWERS)
    forwards_again = (config.engine.accumulation > 1) + checkpoints
    return seconds * (1 + forwards_again / 3)


def block_time(tower: TransformerConfig, half: bool, hardware: Hardware) -> float:
    """Seconds that a block spends on one token beside its products and attention, forward and backward.

    Two norms; GELU; two residual sums and two sums of gradients; the stacking of the gradients of query, key
    and value. In half precision, the casts between the fp32 stream and the products, both ways.
    """
    width, hidden = tower.width, tower.mlp_dim
    compute = 2 if half else FP32
    norms = 2 * (FP32 * (NORM_PASSES - 1) + compute) * width
    sums = FP32 * 12 * width + compute * 6 * width
    biases = compute * (5 * width + hidden) if tower.biases else 0
    casts = 6 * (FP32 + compute) * width if half else 0
    return (
        norms / hardware.norm_rate
        + GELU_PASSES * compute * hidden / hardware.gelu_rate
        + (sums + biases + casts) / hardware.memory_rate
    )


def loss_time(pairs: float, dim: int, num_ranks: int, hardware: Hardware) -> float:
    """A rank's images against all captions: per rank that captions come from, a block or their journey.

    While a rank works on captions the next ones arrive, so the longer of the two counts. Captions travel with
    their gradient, in fp32, from each rank to the next: the links to another node bear that of one rank.
    """
    work = 3 * 2 * pairs**2 * dim / hardware.loss_rate + 10 * FP32 * pairs**2 / hardware.memory_rate
    if num_ranks == 1:
        return work
    rate = hardware.network_rate if num_ranks > hardware.node_size else hardware.node_rate
    journey = hardware.latency + 2 * FP32 * pairs * dim / rate
    return num_ranks * max(work, journey) + journey


def exchange_time(config: RunConfig, weights: int, trained: int, num_ranks: int, hardware: Hardware) -> float:
    """Gradients summed and shared out, weights gathered, a bucket at a time.

    Bandwidth is a ring's; a collective's least time grows with the logarithm of the ranks (NCCL's trees).
    """
    if num_ranks == 1:
        return 0.0
    engine, share = config.engine, (num_ranks - 1) / num_ranks
    compute = 2 if engine.precision == "bf16" else FP32
    passes = {0: 2 * compute, 1: 2 * compute + FP32, 2: compute + FP32, 3: 3 * compute}[engine.zero_stage]
    between_nodes = num_ranks > hardware.node_size
    # Collectives of a node share all its adapters, one a rank; inside, each rank has its own links.
    rate = hardware.node_rate
    if between_nodes:
        rate = min(rate, hardware.network_rate * hardware.node_size)
    numbers = weights if engine.zero_stage == 3 else trained
    hops = 2 * math.log2(num_ranks) * hardware.latency * max(1.0, numbers / BUCKET)
    if engine.zero_stage == 3:
        hops *= 3 * sum(getattr(config.model, name).depth for name in TOWERS)
    return passes * numbers * share / rate + hops


def optimizer_time(own: float, trained: int, stage: int, hardware: Hardware) -> float:
    """The norm reads gradients, clipping reads and writes them, AdamW reads four numbers and writes three.

    From ZeRO 1 on gradients are copied out of backward, into a buffer, out of it into the rank's share and
    there into one flat vector, and weights out of their flat copy; at stage 3 weights are gathered, besides.
    """
    passes = (1 + 2 + 7) * own + (4 * trained + 6 * own if stage else 0) + (2 * trained if stage == 3 else 0)
    of_all, of_own = NEW_COPIES[stage]
    fresh = of_all * trained + of_own * own
    return FP32 * (passes / hardware.memory_rate + fresh / hardware.fresh_rate)


def _trained(config: RunConfig) -> tuple[bool, bool]:
    return not config.optimizer.image.freeze, not config.optimizer.text.freeze
