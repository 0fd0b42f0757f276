"""Learning rate as a pure function of pairs seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from navit_clip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate rises and falls over a run. All lengths are in pairs."""

    kind: Literal["cosine", "rsqrt"] = "cosine"
    """cosine: half a cosine from the peak to `final_share` of it (SigLIP). rsqrt: 1 / sqrt, then a linear
    cool-down (NaViT's supervised runs), for runs whose length is not known when they start."""
    warmup_pairs: int = 0
    """The rate rises linearly from zero over these."""
    final_share: float = 0.0
    """Share of the peak that the last pair is trained with."""
    timescale_pairs: int = 1_000_000
    """rsqrt: pairs after warm-up until the rate has fallen to 1 / sqrt(2) of its peak."""
    cooldown_pairs: int = 0
    """rsqrt: the rate falls linearly to `final_share` of what it was over these last ones."""

    def __post_init__(self):
        for name in ("warmup_pairs", "cooldown_pairs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")
        if self.timescale_pairs < 1:
            raise ConfigError(f"timescale_pairs: expected at least 1, found {self.timescale_pairs}")
        if self.kind == "cosine":
            for name in ("timescale_pairs", "cooldown_pairs"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ConfigError(f"{name}: only kind rsqrt has it, found kind cosine")
        if not 0 <= self.final_share <= 1:
            raise ConfigError(f"final_share: expected between 0 and 1, found {self.final_share}")


def learning_rate_share(config: ScheduleConfig, pairs: int, total: int) -> float:
    """Share of the peak learning rate for the step that starts after `pairs` of `total` pairs.

    The first step of a warm-up has a small rate rather than none: its end, not its start, would be zero.
    """
    if pairs < config.warmup_pairs:
        return (pairs + 1) / (config.warmup_pairs + 1)
    after = pairs - config.warmup_pairs
    if config.kind == "cosine":
        progress = min(after / max(total - config.warmup_pairs, 1), 1.0)
        return config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
    share = (1 + after / config.timescale_pairs) ** -0.5
    left = max(total - pairs, 0)
    if left < config.cooldown_pairs:
        share *= config.final_share + (1 - config.final_share) * left / config.cooldown_pairs
    return share
