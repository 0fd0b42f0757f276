"""Bytes that a rank holds at most: the state by ZeRO stage, activations by the tokens of a batch.

Forward fills the memory with activations, image tower first; backward takes them away and leaves gradients,
the text tower's first. So the most is held where forward ends, between the towers, or where backward ends.
What DeepSpeed 0.19 keeps where is read off its source, runtime/zero/stage_1_and_2.py and stage3.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from navit_clip.loss.comparisons import TILE
from navit_clip.model import TOWERS, Tower
from navit_clip.model.blocks import TransformerConfig
from training.config import RunConfig
from training.engine import BUCKET, EngineConfig
from training.plan.hardware import NODE_SIZE
from training.plan.passes import LIVE
from training.plan.weights import (
    FP32,
    HALF,
    Weights,
    all_weights,
    largest_weight,
    muon_weights,
    trained_weights,
)
from training.plan.workload import Workload

JOINED = 5e8
"""Numbers that DeepSpeed joins at ZeRO 0 to sum them over ranks, in one vector at a time."""
INT32 = 4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank."""

    weights: float
    """And, at ZeRO 1 to 3, the fp32 copy of its share that DeepSpeed's optimizer steps on."""
    moments: float
    """AdamW's two or Muon's one, and the moving average where there is one."""
    gradients: tuple[float, float, float]
    """When backward begins, when it is done with the text tower, and at its end, where a bucket of them is
    copied to be summed over ranks."""
    activations: float
    """All that backward needs of one batch, both towers."""
    image_activations: float
    batches: float
    """Pixels, positions and words of the step that is computed and, already, of the next one."""
    loss: float
    """Of embeddings, ours and those that travel, their gradients, and a tile of comparisons."""
    buffers: float
    """DeepSpeed's, for gradients on their way to other ranks."""
    host: float
    """Of the host's own memory, for what is offloaded there; not among the rank's."""

    @property
    def peak(self) -> float:
        """At the end of forward, between the towers' backwards, or at the end."""
        first, between, last = self.gradients
        return (self.weights + self.moments + self.buffers + self.batches) + max(
            first + self.activations + self.loss, between + self.image_activations + self.loss, last
        )


def memory_of(config: RunConfig, workload: Workload, num_ranks: int, device_type: str = "cuda") -> Memory:
    """What a run of this config needs on each of so many ranks."""
    engine = config.engine
    every, trained = all_weights(config), trained_weights(config)
    stage, half = engine.zero_stage, engine.precision == "bf16"
    held = every.total / num_ranks if stage == 3 else every.total
    stepped = trained.total / (num_ranks if stage else 1)
    # Whole weights: gathered at stage 3, in fp32 whatever they travel in, and what autocast has cast.
    gathered = FP32 * min(every.total, LIVE) if stage == 3 and num_ranks > 1 else 0
    cast = HALF * trained.linear if half else 0
    copy = FP32 * stepped if stage else 0
    moments = (2 * FP32 - FP32 * muon_weights(config) / trained.total) * stepped
    host = 0.0
    if engine.offload_optimizer != "none" and (device_type != "cpu" or engine.offload_optimizer == "nvme"):
        # There, with the gradients of its share; nvme keeps them in files.
        host = copy + moments + FP32 * stepped if engine.offload_optimizer == "cpu" else 0.0
        copy = moments = 0
    average = (held if engine.average_decay else 0) * FP32
    image, text = (activation_bytes(config, workload, tower, device_type) for tower in TOWERS)
    return Memory(
        weights=FP32 * held + copy + gathered + cast,
        moments=moments + average,
        gradients=gradient_bytes(config, num_ranks, device_type),
        activations=image + text,
        image_activations=image,
        batches=2 * engine.accumulation * batch_bytes(workload),
        loss=loss_bytes(workload, num_ranks, device_type),
        buffers=buffer_bytes(engine, trained, device_type),
        host=host,
    )


def activation_bytes(config: RunConfig, workload: Workload, name: Tower, device_type: str) -> float:
    """What backward needs of a tower: with checkpoints, each block's input and one block's insides."""
    if getattr(config.optimizer, name).freeze:
        return 0.0
    tower: TransformerConfig = getattr(config.model, name)
    tokens = workload.image_tokens if name == "image" else workload.text_tokens
    half = config.engine.precision == "bf16"
    inside = tokens * block_bytes(tower, half, device_type)
    blocks = tower.depth * inside
    if tower.checkpoint_blocks:
        blocks = tower.depth * tokens * FP32 * tower.width + inside
    # Embeddings and positions, the last norm, and pooling's values, weighted and not.
    ends = tokens * tower.width * (4 * FP32 + (HALF if half else 0))
    if name == "image":
        ends += tokens * 3 * config.model.image.patch_size**2 * (FP32 + (HALF if half else 0))
    return blocks + ends


def batch_bytes(workload: Workload) -> float:
    """As it comes from the loader: a token's pixels as bytes and its position, a word's number."""
    pixels = 3 * workload.model.image.patch_size**2
    return workload.image_tokens * (pixels + 2 * INT32) + workload.text_tokens * INT32


def block_bytes(tower: TransformerConfig, half: bool, device_type: str) -> float:
    """What one block keeps of one token: what its norms, products, attention and GELU want back.

    The inputs of both norms and what comes out of them; queries, keys and values; what attention gives (twice
    on a CPU, which joins what images of each length give); the MLP's hidden values before and after GELU.
    Where queries and keys have norms, what comes out of these, too, and in half precision their inputs, which
    a GPU's autocast has cast to fp32.
    """
    compute = HALF if half else FP32
    attended = 2 if device_type == "cpu" else 1
    streams = 2 * FP32 * tower.width
    products = compute * ((2 + 3 + attended) * tower.width + 2 * tower.mlp_dim)
    norms = 4 * FP32 + FP32 * tower.num_heads  # means, deviations, log-sum-exps
    if tower.qk_norm:
        products += 2 * (compute + (FP32 if half and device_type == "cuda" else 0)) * tower.width
        norms += 4 * FP32 * tower.num_heads
    return float(streams + products + norms)


def loss_bytes(workload: Workload, num_ranks: int, device_type: str) -> float:
    """Embeddings and gradients of both sides, those on their way, and some copies of a tile.

    A node's captions are there with what this rank and others made of them, two more ranks' on the network.
    """
    rows = workload.pairs * workload.model.image.width * FP32
    on_a_node = min(num_ranks, NODE_SIZE)
    shared = 3 * on_a_node if on_a_node > 1 else 0
    travelling = 4 if num_ranks > on_a_node else 0
    columns = min(on_a_node * workload.pairs, TILE[device_type])
    tile = min(workload.pairs, TILE[device_type]) * columns
    return (4 + shared + travelling) * rows + 3 * FP32 * tile


def gradient_bytes(config: RunConfig, num_ranks: int, device_type: str) -> tuple[float, float, float]:
    """When backward begins, when it is done with the text tower, and at its end or in the step after it.

    At ZeRO 0 and 1 they lie with the weights until backward is done. At 1 they then move to DeepSpeed's
    bucket, at 2 they go there at once; when it is full a copy is summed, and what belongs to the rank moves
    on to its share. At 3 shares have their place from the start. From 1 on a step has its share twice: in
    slices and flat. What is accumulated stays.
    """
    engine = config.engine
    trained, text = trained_weights(config), trained_weights(config, "text").total
    every, share = FP32 * trained.total, FP32 * trained.total / num_ranks
    summed = summed_bytes(config, trained, num_ranks)
    accumulates, on_cpu = engine.accumulation > 1, device_type == "cpu"
    if engine.zero_stage == 3:  # gloo, a CPU's, shares out a sum of all, in another copy
        return share, share, share + max(share, 2 * summed if on_cpu else summed)
    if engine.zero_stage == 0:
        kept = every if accumulates else 0.0
        return kept, max(kept, FP32 * text), every + summed
    if engine.zero_stage == 1:
        kept = every if accumulates else 0.0
        moved = FP32 * min(BUCKET, trained.total)
        last = every + (summed if on_cpu else max(0.0, max(share, summed) - moved))
        return kept, max(kept, FP32 * text), max(last, 2 * share)
    kept = share if accumulates else 0.0
    # A CPU gives memory its pages as they are written; a GPU's is whole, a bucket's counted with the buffers.
    (in_text, of_text), (in_all, of_all) = (
        (
            FP32 * min(BUCKET, numbers) if on_cpu else 0.0,
            min(share, FP32 * (numbers - BUCKET) if on_cpu else share) if numbers > BUCKET else 0.0,
        )
        for numbers in (text, trained.total)
    )
    last = in_all + max(share, of_all + summed)
    return kept, kept + in_text + of_text, kept + max(last, 2 * share)


def summed_bytes(config: RunConfig, trained: Weights, num_ranks: int) -> float:
    """Copies of a bucket of gradients that are made to sum it over ranks; one kind of weights at a time.

    One rank flattens nothing at ZeRO 0 to 2; at 1 and 2 a bucket that travels in half precision is cast.
    """
    stage = config.engine.zero_stage
    flat = FP32 if num_ranks > 1 else 0.0
    if stage == 0:
        return flat * min(JOINED, trained.total)
    most = max(BUCKET, largest_weight(config))
    if config.engine.precision == "fp32":
        return (FP32 if stage == 3 else flat) * min(most, trained.total)
    linear, others = min(most, trained.linear), min(most, trained.others)
    if stage == 3:
        return max(HALF * linear, FP32 * others)
    return max((flat + HALF) * linear, flat * others)


def buffer_bytes(engine: EngineConfig, trained: Weights, device_type: str) -> float:
    """DeepSpeed's own, from when backward begins at ZeRO 1 and 2, and always at 3.

    In bf16 there are two, one for each kind of weights: both of fp32 at 1 and 2, each of what it sends at 3.
    """
    half = engine.precision == "bf16"
    if not engine.zero_stage or (engine.zero_stage < 3 and device_type == "cpu"):
        return 0.0  # a CPU's are counted with the gradients
    if engine.zero_stage < 3:
        return (2 if half else 1) * FP32 * BUCKET
    if device_type == "cpu":
        linear, others = min(BUCKET, trained.linear), min(BUCKET, trained.others)
        return Weights(linear, others).exchanged(half) if half else FP32 * min(BUCKET, trained.total)
    return Weights(BUCKET, BUCKET).exchanged(half) if half else FP32 * BUCKET
