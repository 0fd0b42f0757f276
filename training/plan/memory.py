"""Bytes that a rank holds at most: the state by ZeRO stage, activations by the tokens of a batch.

Forward fills the memory with activations, image tower first; backward takes them away and leaves gradients,
the text tower's first. So the most is held where forward ends, between the towers, or where backward ends.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import torch

from navit_clip.loss.comparisons import TILE
from navit_clip.model import TOWERS, ClipConfig, Tower, TwoTowers
from navit_clip.model.blocks import TransformerConfig
from training.config import RunConfig
from training.engine import EngineConfig
from training.plan.hardware import FP32
from training.plan.workload import Workload

BUCKET = 5e8
"""Numbers in DeepSpeed's buffer for gradients on their way (its default, which this project leaves)."""
LIVE = 1e9
"""Weights that DeepSpeed's ZeRO-3 keeps gathered from their first use to their last, likewise."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank."""

    weights: float
    """And, at ZeRO 1 to 3, the fp32 copy of its share that DeepSpeed's optimizer steps on."""
    moments: float
    """AdamW's two, and the moving average where there is one."""
    gradients: tuple[float, float, float]
    """When backward begins, when it is done with the text tower, and at its end."""
    activations: float
    """All that backward needs of one batch, both towers."""
    image_activations: float
    loss: float
    """Of embeddings, ours and those that travel, their gradients, and a tile of comparisons."""
    buffers: float
    """DeepSpeed's, for gradients on their way to other ranks."""

    @property
    def peak(self) -> float:
        """At the end of forward, between the towers' backwards, or at the end."""
        first, between, last = self.gradients
        return (self.weights + self.moments + self.buffers) + max(
            first + self.activations + self.loss, between + self.image_activations + self.loss, last
        )


def memory_of(config: RunConfig, workload: Workload, num_ranks: int, device_type: str = "cuda") -> Memory:
    """What a run of this config needs on each of so many ranks."""
    engine = config.engine
    trained, frozen = count_weights(config)
    weights, share = trained + frozen, trained / num_ranks
    stage, half = engine.zero_stage, engine.precision == "bf16"
    held = weights / num_ranks if stage == 3 else weights
    offloads = engine.offload_optimizer != "none"
    copy = share if stage and not offloads else 0
    # Whole weights in the precision that is computed in: gathered at stage 3, else what autocast has cast.
    whole = (2 if half else FP32) * min(weights, LIVE) if stage == 3 or half else 0
    average = (held if engine.average_decay else 0) * FP32
    moments = 0 if offloads else 2 * FP32 * (share if stage else trained)
    image, text = (activation_bytes(config, workload, tower, device_type) for tower in TOWERS)
    return Memory(
        weights=FP32 * (held + copy) + whole,
        moments=moments + average,
        gradients=gradient_bytes(config, num_ranks, device_type),
        activations=image + text,
        image_activations=image,
        loss=loss_bytes(workload, num_ranks, device_type),
        buffers=buffer_bytes(engine, trained, device_type),
    )


def count_weights(config: RunConfig) -> tuple[int, int]:
    """Weights that are trained, and those that are not."""
    sizes = _sizes(config.model)
    frozen = sum(sizes[tower] for tower in TOWERS if getattr(config.optimizer, tower).freeze)
    return sum(sizes.values()) - frozen, frozen


def count_tensors(config: RunConfig) -> int:
    """Into which the weights are divided."""
    with torch.device("meta"):
        return sum(1 for _ in TwoTowers(config.model).parameters())


def trained_weights(config: RunConfig, tower: Tower) -> int:
    """Of one tower."""
    return 0 if getattr(config.optimizer, tower).freeze else _sizes(config.model)[tower]


@cache
def _sizes(model: ClipConfig) -> dict[str, int]:
    """Weights of each tower, and of what is in neither."""
    with torch.device("meta"):
        towers = TwoTowers(model)
    sizes: Counter[str] = Counter()
    for name, weight in towers.named_parameters():
        sizes[name.partition(".")[0]] += weight.numel()
    return sizes


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
    ends = tokens * tower.width * (4 * FP32 + (2 if half else 0))
    if name == "image":
        ends += tokens * 3 * config.model.image.patch_size**2 * (1 + FP32 + (2 if half else 0))
    return blocks + ends


def block_bytes(tower: TransformerConfig, half: bool, device_type: str) -> float:
    """What one block keeps of one token: what its norms, products, attention and GELU want back.

    The inputs of both norms and what comes out of them; queries, keys and values; what attention gives (twice
    on a CPU, which joins what images of each length give); the MLP's hidden values before and after GELU.
    """
    compute = 2 if half else FP32
    attended = 2 if device_type == "cpu" else 1
    streams = 2 * FP32 * tower.width
    products = compute * ((2 + 3 + attended) * tower.width + 2 * tower.mlp_dim)
    norms = 4 * FP32 + FP32 * tower.num_heads  # means, deviations, log-sum-exps
    return float(streams + products + norms)


def loss_bytes(workload: Workload, num_ranks: int, device_type: str) -> float:
    """Embeddings and gradients of both sides, two more ranks' on the way, and some copies of a tile."""
    rows = workload.pairs * workload.model.image.width * FP32
    side = min(workload.pairs, TILE[device_type])
    travelling = 4 if num_ranks > 1 else 0
    return (4 + travelling) * rows + 3 * FP32 * side**2


def gradient_bytes(config: RunConfig, num_ranks: int, device_type: str) -> tuple[float, float, float]:
    """When backward begins, when it is done with the text tower, and at its end.

    At ZeRO 0 several ranks sum a copy of them, a buffer's fill at a time. At 1 and 2 they lie in DeepSpeed's
    buffer until it is full or all are there, and then a rank's share lies beside it; at 3 shares have their
    place from the start. What is accumulated stays.
    """
    engine = config.engine
    trained, text = count_weights(config)[0], trained_weights(config, "text")
    share = FP32 * trained / num_ranks
    if engine.zero_stage == 3:
        return share, share, share
    accumulates = engine.accumulation > 1
    if engine.zero_stage == 0:
        kept, copied = (FP32 * trained if accumulates else 0.0), min(BUCKET, trained) if num_ranks > 1 else 0
        return kept, max(kept, FP32 * text), FP32 * (trained + copied)
    kept = (share if engine.zero_stage == 2 else FP32 * trained) if accumulates else 0.0
    # A CPU gives a buffer pages as they are written; a GPU's is whole, and counted with the buffers.
    buffered = _exchanged(engine) if device_type == "cpu" else 0
    return kept, kept + buffered * min(BUCKET, text), max(kept, share) + buffered * min(BUCKET, trained)


def buffer_bytes(engine: EngineConfig, trained: int, device_type: str) -> float:
    """DeepSpeed's own, from when backward begins at ZeRO 1 and 2, and always at 3."""
    if device_type == "cuda":
        return BUCKET * _exchanged(engine) if engine.zero_stage else 0.0
    return min(BUCKET, trained) * _exchanged(engine) if engine.zero_stage == 3 else 0.0


def _exchanged(engine: EngineConfig) -> float:
    """Bytes of a number on its way."""
    return 2.0 if engine.precision == "bf16" else FP32
