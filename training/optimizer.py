"""AdamW or Muon, and the groups of parameters that it treats alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from navit_clip.errors import ConfigError
from navit_clip.model import TOWERS, Tower, TwoTowers
from training.quiet_deepspeed import make_muon


@dataclass(frozen=True, kw_only=True)
class TowerOptimizerConfig:
    """How a tower's weights learn, beside the rest of the run."""

    learning_rate_share: float = 1.0
    """Of the run's learning rate, all along its schedule; SigLIP gives a pretrained tower 0.1."""
    weight_decay_share: float = 1.0
    """Of the run's weight decay."""
    layer_decay: float = 1.0
    """Share of a layer's learning rate that the layer below it has; 1 treats all layers alike. The head and
    the final norm are above the last block, the embeddings below the first."""
    freeze: bool = False
    """Whether the weights stay as they are (LiT, 2111.07991)."""

    def __post_init__(self):
        for name in ("learning_rate_share", "weight_decay_share"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay: expected in (0, 1], found {self.layer_decay}")


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon (Jordan et al., 2024) steps along the orthogonal matrix that is nearest to the gradient's mean."""

    learning_rate_share: float = 20.0
    """Of the run's learning rate, which is AdamW's: a Muon step of rate 1 has singular values of about 1."""
    momentum: float = 0.95
    """Memory of the gradient's mean."""

    def __post_init__(self):
        if self.learning_rate_share < 0:
            raise ConfigError(f"learning_rate_share: expected at least 0, found {self.learning_rate_share}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum: expected in [0, 1), found {self.momentum}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, with SigLIP's settings as defaults (2303.15343, §4), or Muon."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: DeepSpeed's for matrices inside blocks, AdamW for all else. Needs engine.gradient_clipping 0."""
    learning_rate: float = 1e-3
    """The peak."""
    weight_decay: float = 1e-4
    """Per unit of their learning rate (decoupled), on matrices alone."""
    beta1: float = 0.9
    """Memory of the gradient's mean."""
    beta2: float = 0.95
    """Memory of the gradient's square; below Adam's 0.999 it keeps contrastive training steady."""
    epsilon: float = 1e-8
    """Added to the root of the squared gradient's mean."""
    muon: MuonConfig = field(default_factory=MuonConfig)
    """What differs for the matrices that Muon trains."""
    image: TowerOptimizerConfig = field(default_factory=TowerOptimizerConfig)
    """The image tower."""
    text: TowerOptimizerConfig = field(default_factory=TowerOptimizerConfig)
    """The text tower."""

    def __post_init__(self):
        for name in ("learning_rate", "weight_decay", "epsilon"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected in [0, 1), found {getattr(self, name)}")
        if self.image.freeze and self.text.freeze:
            raise ConfigError("image.freeze, text.freeze: expected one tower at least to train, found none")


def make_optimizer(
    config: OptimizerConfig, model: TwoTowers, undecayed: Sequence[Tower] = ()
) -> torch.optim.Optimizer:
    """The optimizer over `parameter_groups`; the loop sets each step's learning rate."""
    groups = parameter_groups(config, model, undecayed)
    adamw: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
    }
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, **adamw, fused=True)
    for group in groups:
        muon = {"lr": config.learning_rate, "momentum": config.muon.momentum}
        group.update(muon if group["use_muon"] else adamw)
    return make_muon(groups, fused=True)


def freeze_towers(config: OptimizerConfig, model: TwoTowers) -> None:
    """Takes the frozen towers' weights out of training: no gradient, no optimizer state."""
    for tower in TOWERS:
        if getattr(config, tower).freeze:
            getattr(model, tower).requires_grad_(False)


def parameter_groups(
    config: OptimizerConfig, model: TwoTowers, undecayed: Sequence[Tower] = ()
) -> list[dict[str, Any]]:
    """Parameters that share a learning rate and a weight decay, for a torch optimizer.

    Matrices decay; norms, biases, positions, the probe, t' and b do not.

    Args:
        config: see there.
        model: what is trained; parameters that take no gradient are in no group.
        undecayed: towers no weight of which decays: those that start from trained weights.

    Returns:
        Groups of `params`, `weight_decay`, `learning_rate_share`, by which a step's learning rate is
        multiplied, and `use_muon`.
    """
    groups: dict[_Treatment, list[nn.Parameter]] = {}
    for treatment, parameter in _treatments(config, model, undecayed):
        groups.setdefault(treatment, []).append(parameter)
    return [{"params": parameters, **treatment._asdict()} for treatment, parameters in groups.items()]


class _Treatment(NamedTuple):
    learning_rate_share: float
    weight_decay: float
    use_muon: bool


def _treatments(
    config: OptimizerConfig, model: TwoTowers, undecayed: Sequence[Tower]
) -> Iterator[tuple[_Treatment, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tower = name.partition(".")[0]
        if tower not in TOWERS:
            yield _Treatment(1.0, 0.0, False), parameter
            continue
        own: TowerOptimizerConfig = getattr(config, tower)
        depth = getattr(model.config, tower).depth
        share = own.learning_rate_share * own.layer_decay ** (depth + 1 - _layer(name, depth))
        decays = _is_matrix(name, parameter) and tower not in undecayed
        decay = config.weight_decay * own.weight_decay_share if decays else 0.0
        use_muon = config.kind == "muon" and ".blocks." in name and _is_matrix(name, parameter)
        if use_muon:
            share *= config.muon.learning_rate_share
        yield _Treatment(share, decay, use_muon), parameter


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a weight multiplies vectors. A table of positions is as flat as a matrix, but is added to them.

    The towers call whatever holds positions `position…`.
    """
    positional = any(part.startswith("position") for part in name.split("."))
    return parameter.ndim == 2 and parameter.shape[0] > 1 and not positional


def _layer(name: str, depth: int) -> int:
    """0 for embeddings, 1 to `depth` for blocks, one more for what comes after them."""
    block = re.search(r"\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if re.search(r"embedding|\.position", name) else depth + 1
