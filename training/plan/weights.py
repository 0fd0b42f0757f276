"""How many weights a run has, and in what precision ranks exchange them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import NamedTuple

import torch

from navit_clip.model import TOWERS, ClipConfig, Tower, TwoTowers
from training.config import RunConfig
from training.engine import EXCHANGED_IN_HALF
from training.optimizer import freeze_towers, parameter_groups

FP32 = 4.0
HALF = 2.0


class Weights(NamedTuple):
    """Numbers, not bytes."""

    linear: int
    """Of linear layers, which DeepSpeed exchanges in the precision that they compute in."""
    others: int
    """Embeddings, positions, norms, pooling's own matrices: always exchanged in fp32."""

    @property
    def total(self) -> int:
        return self.linear + self.others

    def exchanged(self, half: bool) -> float:
        """Bytes of all of them on their way."""
        return (HALF if half else FP32) * self.linear + FP32 * self.others


def all_weights(config: RunConfig) -> Weights:
    """Trained or not."""
    return _sum(_sizes(config.model))


def trained_weights(config: RunConfig, tower: Tower | None = None) -> Weights:
    """Of one tower, or of all."""
    sizes = _sizes(config.model)
    frozen = {name for name in TOWERS if getattr(config.optimizer, name).freeze}
    return _sum({name: size for name, size in sizes.items() if name not in frozen and tower in (None, name)})


def count_tensors(config: RunConfig) -> int:
    """Into which the weights are divided."""
    with torch.device("meta"):
        return sum(1 for _ in TwoTowers(config.model).parameters())


def largest_weight(config: RunConfig) -> int:
    """The numbers of the largest that is trained: DeepSpeed exchanges it whole, whatever a bucket holds."""
    with torch.device("meta"):
        model = TwoTowers(config.model)
    freeze_towers(config.optimizer, model)
    return max(weight.numel() for weight in model.parameters() if weight.requires_grad)


def muon_weights(config: RunConfig) -> int:
    """Those that Muon trains, where AdamW does not."""
    if config.optimizer.kind != "muon":
        return 0
    with torch.device("meta"):
        model = TwoTowers(config.model)
    freeze_towers(config.optimizer, model)
    groups = parameter_groups(config.optimizer, model)
    return sum(weight.numel() for group in groups if group["use_muon"] for weight in group["params"])


@cache
def _sizes(model: ClipConfig) -> dict[str, Weights]:
    """Of each tower, and of what is in neither."""
    with torch.device("meta"):
        towers = TwoTowers(model)
    linear: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for name, module in towers.named_modules():
        counts = linear if type(module) in EXCHANGED_IN_HALF else others
        for own, weight in module.named_parameters(name, recurse=False):
            counts[own.partition(".")[0]] += weight.numel()
    return {name: Weights(linear[name], others[name]) for name in linear.keys() | others.keys()}


def _sum(sizes: dict[str, Weights]) -> Weights:
    return Weights(*(sum(part) for part in zip(*sizes.values(), strict=True))) if sizes else Weights(0, 0)
