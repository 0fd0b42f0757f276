"""Everything that one run needs, in one YAML."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from eval.task_config import EvalConfig
from navit_clip.data import DataConfig
from navit_clip.errors import ConfigError
from navit_clip.loss import LossConfig
from navit_clip.model import ClipConfig
from training.checkpoint import CheckpointConfig
from training.engine import EngineConfig
from training.initial_weights import InitialWeightsConfig
from training.optimizer import OptimizerConfig
from training.schedule import ScheduleConfig
from training.validation import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run. Its length is counted in pairs: batches have a budget of tokens, not of pairs."""

    folder: str
    """Where the run keeps its config, log, metrics and checkpoints."""
    pairs: int
    """Image-text pairs to train on, over all ranks."""
    tokenizer: str
    """A tokenizer folder, such as `navit-clip tokenizer train` writes, or open_clip."""
    seed: int = 0
    """Seeds the weights, the order of samples and everything drawn for them."""
    log_every: int = 10
    """Steps between log lines."""
    attention: str = "auto"
    """Attention backend: auto, flash_attn, torch_varlen or sdpa."""
    model: ClipConfig = field(default_factory=ClipConfig)
    """The towers."""
    init_from: InitialWeightsConfig = field(default_factory=InitialWeightsConfig)
    """Trained towers to start from."""
    data: DataConfig
    """The training stream."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Which comparisons are positives."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW or Muon, and how each tower's weights learn."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate over the run."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """DeepSpeed."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When to save, and what to keep."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Held-out pairs for a validation loss."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    """What to evaluate during the run."""
    evaluate_every: int = 0
    """Steps between validations and evaluations, of which the last is at the end; 0 has that one alone."""

    def __post_init__(self):
        if self.pairs < 1:
            raise ConfigError(f"pairs: expected at least 1, found {self.pairs}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: expected a number from 0 to 2**63 - 1, found {self.seed}")
        if self.log_every < 1:
            raise ConfigError(f"log_every: expected at least 1, found {self.log_every}")
        if self.evaluate_every < 0:
            raise ConfigError(f"evaluate_every: expected at least 0, found {self.evaluate_every}")
        if self.evaluate_every and not (self.validation.data.shards or self.evaluation.tasks):
            raise ConfigError(
                f"evaluate_every: expected 0 where there are neither validation.data.shards nor "
                f"evaluation.tasks, found {self.evaluate_every}"
            )
        if self.optimizer.kind == "muon" and self.engine.gradient_clipping:
            raise ConfigError(
                "engine.gradient_clipping: expected 0 with optimizer.kind muon, found "
                f"{self.engine.gradient_clipping}: DeepSpeed would clip what Muon has made of the gradient, "
                "and Muon does not see how large a gradient is"
            )
        if self.optimizer.kind == "muon" and self.engine.offload_optimizer == "nvme":
            raise ConfigError(
                "engine.offload_optimizer: expected none or cpu with optimizer.kind muon, found nvme: what "
                "Muon remembers there has not been seen to come back"
            )
        reach = self.model.image.position.reach
        longest = self.data.resolution.longest_side(self.model.image.patch_size)
        if reach and longest > reach:
            raise ConfigError(
                f"data.resolution.max_grid_side: expected from 1 to {reach}, where the table of "
                f"model.image.position ends: an image of {longest} patches a side would end the run"
            )
        if self.schedule.warmup_pairs >= self.pairs:
            raise ConfigError(
                f"schedule.warmup_pairs: expected fewer than pairs ({self.pairs}), "
                f"found {self.schedule.warmup_pairs}; a shorter run needs a shorter warm-up, such as "
                f"schedule.warmup_pairs={self.pairs // 20}"
            )
        changing = self.schedule.warmup_pairs + self.schedule.cooldown_pairs
        if changing > self.pairs:
            raise ConfigError(
                f"schedule.cooldown_pairs: with warmup_pairs expected at most pairs ({self.pairs}), "
                f"found {changing} together"
            )


def add_run_arguments(parser: argparse.ArgumentParser, example: str) -> None:
    """A run's YAML and `key=value` settings, as `config` and `overrides`, for `load_config`."""
    parser.add_argument("config", help=f"YAML of the run, such as {example}")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # else argparse calls it required
        metavar="key=value",
        help="settings that replace the file's",
    )
