"""Seconds of a step: the towers' work, the loss's ring, the gradients' way round, the optimizer, the hosts.

Matrix products and attention run at their own rates; whatever goes through the towers value by value (norms,
GELU, residual sums, casts) at the rate of the memory. So utilisation is a result, not an assumption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from navit_clip.model import TOWERS, Tower
from navit_clip.model.blocks import TransformerConfig
from training.config import RunConfig
from training.engine import BUCKET, EngineConfig
from training.plan.hardware import GELU_PASSES, NORM_PASSES, Hardware
from training.plan.memory import JOINED
from training.plan.passes import Passes, gathers, passes_of
from training.plan.weights import FP32, HALF, Weights, all_weights, count_tensors, trained_weights
from training.plan.workload import Workload

OVERLAPPED = {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.8}
"""Share of the towers' time behind which a ZeRO stage hides what it exchanges: DeepSpeed overlaps by
default at stage 3 alone, where the first weights still have to be there before anything can start. How much
that leaves is a guess: no GPU was measured. CPUs hide nothing: to send takes the cores that compute."""
CALLS = {0: 60, 1: 135, 2: 135, 3: 390}
"""Small operations that take as long as a stage's Python and its calls of kernels, for each batch and each
tensor of the model: on an EPYC, of 312 tensors too small to matter."""
NODE_STARTED = 4e-4
"""Seconds in which a host starts all that the loss does with a node's captions: its Python, on an EPYC
(benchmarks/loss_host.py); what NCCL and a GPU's driver add was not measured."""
HOSTS_OVERLAPPED = 0.5
"""Share of the towers' time behind which hosts tell each other of the next step: they begin when all of this
one's towers is launched. How early that is is a guess: no GPU was measured."""


@dataclass(frozen=True, kw_only=True)
class Waits:
    """By how much the slowest rank is above the mean, as a share of it; the simulation says (benchmarks/)."""

    towers: float = 0.0
    """Seconds of the towers."""
    pairs: float = 0.0
    """Pairs of the rank that has most."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step of one rank, all batches of it."""

    towers: float
    loss: float
    exchange: float
    """Of gradients and weights, as far as nothing hides it."""
    optimizer: float
    hosts: float
    """Of what the ranks' hosts tell each other, as far as nothing hides it."""
    model_flops: float
    """Operations on real tokens, nothing computed twice."""

    @property
    def total(self) -> float:
        return self.towers + self.loss + self.exchange + self.optimizer + self.hosts


EVEN = Waits()
"""Ranks that are all alike."""


def step_time(
    config: RunConfig, workload: Workload, num_ranks: int, hardware: Hardware, waits: Waits = EVEN
) -> StepTime:
    """What a step takes on so many ranks of this hardware."""
    engine = config.engine
    hardware = hardware.computing_in(engine.precision)
    every, trained = all_weights(config), trained_weights(config)
    batches, stage = engine.accumulation, engine.zero_stage
    towers = batches * towers_time(config, workload, hardware) * (1 + waits.towers)
    if config.loss.products == "tf32":
        hardware = replace(hardware, loss_rate=hardware.tf32_rate)
    loss = loss_time(batches * workload.pairs, workload.model.image.width, num_ranks, hardware)
    depth = sum(getattr(config.model, name).depth for name in TOWERS)
    on_cpu = hardware.name == "this"
    sent = exchange_bytes(engine, every, trained, on_cpu)
    exchange = exchange_time(
        stage, sent, (every if stage == 3 else trained).total, depth, num_ranks, hardware
    )
    return StepTime(
        towers=towers,
        loss=loss * (1 + waits.pairs),  # all stand behind the rank with most pairs, at every hop
        exchange=exchange if on_cpu else max(0.0, exchange - OVERLAPPED[stage] * towers),
        optimizer=passes_time(passes_of(engine, every, trained, num_ranks, on_cpu), hardware)
        + batches * CALLS[stage] * hardware.call_time * count_tensors(config),
        hosts=max(0.0, host_time(num_ranks, hardware) - HOSTS_OVERLAPPED * towers),
        model_flops=batches * workload.flops(_trained(config)),
    )


def towers_time(config: RunConfig, workload: Workload, hardware: Hardware) -> float:
    """Forward and backward of one batch; forward twice with accumulation, and again with checkpoints."""
    half = config.engine.precision == "bf16"
    seconds = 0.0
    for name, trained in zip(TOWERS, _trained(config), strict=True):
        tower: TransformerConfig = getattr(config.model, name)
        forwards = 1 + (config.engine.accumulation > 1)
        if trained:
            forwards += 2 + tower.checkpoint_blocks  # a backward is two
        seconds += forwards * forward_time(workload, name, half, hardware)
    return seconds


def forward_time(workload: Workload, name: Tower, half: bool, hardware: Hardware) -> float:
    """Of one tower: a third of what forward and backward take together."""
    tower: TransformerConfig = getattr(workload.model, name)
    tokens = tower.depth * (workload.image_tokens if name == "image" else workload.text_tokens)
    attention = workload.attention_flops(name)
    products = workload.forward_flops(name) - attention
    # Short sequences: queries, keys, values are read and their mean written in more time than computed.
    passed = 4 * (HALF if half else FP32) * tower.width * tokens
    return (
        products / hardware.product_rate
        + max(attention / hardware.attention_rate, passed / hardware.memory_rate)
        + tokens * block_time(tower, half, hardware) / 3
    )


def block_time(tower: TransformerConfig, half: bool, hardware: Hardware) -> float:
    """Seconds that a block spends on one token beside its products and attention, forward and backward.

    Two norms, and those of queries and keys; GELU; two residual sums and two sums of gradients; the stacking
    of the gradients of query, key and value. In half precision, the casts between the fp32 stream and the
    products, both ways.
    """
    width, hidden = tower.width, tower.mlp_dim
    compute = HALF if half else FP32
    num_norms = 4 if tower.qk_norm else 2
    norms = num_norms * (FP32 * (NORM_PASSES - 1) + compute) * width
    sums = FP32 * 12 * width + compute * 6 * width
    biases = compute * (5 * width + hidden) if tower.biases else 0
    casts = (6 + (num_norms - 2) * 2) * (FP32 + compute) * width if half else 0
    return (
        norms / hardware.norm_rate
        + GELU_PASSES * compute * hidden / hardware.gelu_rate
        + (sums + biases + casts) / hardware.memory_rate
    )


def loss_time(pairs: float, dim: int, num_ranks: int, hardware: Hardware) -> float:
    """A rank's images against all captions, those of a node at a time.

    They come from the node before with their gradients, in fp32, each rank's over its own adapter, while it
    works on those that are there: the longer of the two counts. The ranks of a node share what has arrived
    before they work on it, and give the gradients back afterwards, which nothing hides. A host that takes
    longer to start all this than a device to do it holds the device up: how far it was ahead when it began is
    not counted, since a device takes in only about a thousand launches, those of some 25 nodes.
    """
    rows = FP32 * pairs * dim
    block = 3 * 2 * pairs**2 * dim / hardware.loss_rate + 10 * FP32 * pairs**2 / hardware.memory_rate
    on_a_node = min(num_ranks, hardware.node_size)
    shared = hardware.latency + (on_a_node - 1) * rows / hardware.node_rate if on_a_node > 1 else 0.0
    # A copy for each rank of the node, zeros for their gradients, the sum of what all made, that of the ring.
    copied = (5 * on_a_node + 3) * rows / hardware.memory_rate if num_ranks > 1 else 0.0
    nodes = math.ceil(num_ranks / on_a_node)
    journey = hardware.latency + 2 * rows / hardware.network_rate if nodes > 1 else 0.0
    on_device = 2 * shared + copied + max(on_a_node * block, journey)
    return nodes * (on_device if nodes == 1 else max(on_device, NODE_STARTED)) + journey


def exchange_bytes(engine: EngineConfig, every: Weights, trained: Weights, on_cpu: bool) -> float:
    """That a rank sends, but for its own share of them.

    ZeRO 0 sums gradients over ranks in fp32; 1 and 2 sum the whole of them, too (DeepSpeed's
    `use_multi_rank_bucket_allreduce`), and gather weights in fp32; 3 sends each rank its share alone and
    gathers weights, once for both passes as long as all may stay; gloo, which CPUs use, sums whole gradients
    there, too. 2 and 3 do it for each batch of a step.
    """
    half, stage, batches = engine.precision == "bf16", engine.zero_stage, engine.accumulation
    gradients = trained.exchanged(half)
    if stage == 0:
        return 2 * FP32 * trained.total
    if stage < 3:
        return 2 * gradients * (batches if stage == 2 else 1) + FP32 * trained.total
    return (2 if on_cpu else 1) * batches * gradients + gathers(engine, every) * every.exchanged(half)


def exchange_time(
    stage: int, sent: float, numbers: int, depth: int, num_ranks: int, hardware: Hardware
) -> float:
    """Gradients summed and shared out, weights gathered, a bucket at a time.

    Bandwidth is a ring's; a collective's least time grows with the logarithm of the ranks (NCCL's trees).
    """
    if num_ranks == 1:
        return 0.0
    # Collectives of a node share all its adapters, one a rank; inside, each rank has its own links.
    rate = hardware.node_rate
    if num_ranks > hardware.node_size:
        rate = min(rate, hardware.network_rate * hardware.node_size)
    at_once = BUCKET if stage else JOINED
    collectives = max(1.0, numbers / at_once)
    if stage == 3:  # each block's weights are gathered for themselves, and its gradients shared out
        collectives = max(collectives, 3.0 * depth)
    hops = 2 * math.log2(num_ranks) * hardware.latency
    return sent * (num_ranks - 1) / num_ranks / rate + collectives * hops


def passes_time(passes: Passes, hardware: Hardware) -> float:
    """Seconds of what goes through the memory."""
    return passes.passed / hardware.memory_rate + passes.fresh / hardware.fresh_rate


def host_time(num_ranks: int, hardware: Hardware) -> float:
    """Gloo's all-gather is a ring: what each rank says reaches the last one after as many hops as others."""
    return (num_ranks - 1) * hardware.host_latency


def uncounted(config: RunConfig) -> list[str]:
    """What such a run would take time for, or save, that `step_time` says nothing of."""
    engine = config.engine
    return [
        what
        for what, there in (
            ("what torch.compile fuses (engine.compile)", engine.compile),
            (
                "the optimizer's steps on the host, and the way there and back",
                engine.offload_optimizer != "none",
            ),
            ("reading and writing the optimizer's files", engine.offload_optimizer == "nvme"),
            ("Muon's orthogonal steps, beyond AdamW's", config.optimizer.kind == "muon"),
            ("the softmax loss's other passes over its matrix", config.loss.kind == "softmax"),
        )
        if there
    ]


def _trained(config: RunConfig) -> tuple[bool, bool]:
    return not config.optimizer.image.freeze, not config.optimizer.text.freeze
