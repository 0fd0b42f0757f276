"""AdamW and the groups of parameters that it treats alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from navit_clip.errors import ConfigError
from navit_clip.model import NavitClip


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, with SigLIP's settings as defaults (2303.15343, §4)."""

    learning_rate: float = 1e-3
    """The peak."""
    weight_decay: float = 1e-4
    """Per unit of learning rate (decoupled), on matrices alone."""
    beta1: float = 0.9
    """Memory of the gradient's mean."""
    beta2: float = 0.95
    """Memory of the gradient's square; below Adam's 0.999 it keeps contrastive training steady."""
    epsilon: float = 1e-8
    """Added to the root of the squared gradient's mean."""

    def __post_init__(self):
        for name in ("learning_rate", "weight_decay", "epsilon"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected in [0, 1), found {getattr(self, name)}")


def make_optimizer(config: OptimizerConfig, model: NavitClip) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; the loop sets each step's learning rate."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def parameter_groups(model: NavitClip, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases, embeddings of positions, the probe, t' and b do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and parameter.shape[0] > 1 and ".position" not in name
        (decayed if matrix else kept).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
