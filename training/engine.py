"""DeepSpeed behind a few words: forward, backward, step, save, load. The one file that imports it.

DeepSpeed's own JSON is generated here from the run's config and from nothing else. On machines without a
GPU the same engine runs on the CPU with gloo.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch

from navit_clip.batch import Batch, Embeddings
from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, ConfigError
from navit_clip.model import ClipConfig, NavitClip

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# DeepSpeed compiles small ops when it is imported, and torch then remarks on the absence of a GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

import deepspeed  # noqa: E402
from deepspeed.utils import logger as deepspeed_logger  # noqa: E402

deepspeed_logger.setLevel(logging.WARNING)
# Between CPU ranks of one machine DeepSpeed would compile an op for shared memory, half a minute with a C++
# compiler and ninja on the PATH, and without them an error. Gloo does the same work.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the model's state is spread over ranks, and in what precision it computes."""

    zero_stage: int = 0
    """DeepSpeed ZeRO: 0 replicates; 1 shards optimizer states, 2 gradients too, 3 weights too."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: matrix products and attention in bfloat16 under autocast; weights, norms, the logits and
    the optimizer stay in fp32. fp32: everything, for CPUs and for tests."""
    accumulation: int = 1
    """Batches per optimizer step and rank. Each is contrasted on its own and the gradients are averaged."""
    gradient_clipping: float = 1.0
    """Largest norm of the gradient of all parameters; 0 clips nothing."""

    def __post_init__(self):
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"zero_stage: expected 0, 1, 2 or 3, found {self.zero_stage}")
        if self.accumulation < 1:
            raise ConfigError(f"accumulation: expected at least 1, found {self.accumulation}")
        if self.gradient_clipping < 0:
            raise ConfigError(f"gradient_clipping: expected at least 0, found {self.gradient_clipping}")

    @property
    def compute_dtype(self) -> torch.dtype:
        """What matrix products and attention run in."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


class Engine:
    """A model and its optimizer under DeepSpeed, on every rank.

    Call `forward` and `backward` for each of `accumulation` batches, then `step`.
    """

    def __init__(
        self, config: EngineConfig, model: NavitClip, optimizer: torch.optim.Optimizer, world: World
    ):
        self.config = config
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it, launched or not
        self._module = model.to(world.device)
        self._module.compute_dtype = config.compute_dtype
        self._optimizer: Any  # one of DeepSpeed's wrappers, or at stage 0 the optimizer itself
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what nobody asked for
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=self._module,
                optimizer=optimizer,
                config=deepspeed_config(config),
                dist_init_required=False,
            )

    @property
    def model_config(self) -> ClipConfig:
        """Of the model that is trained."""
        return self._module.config

    def forward(self, batch: Batch) -> Embeddings:
        """The model's embeddings of a batch, with graph."""
        return self._engine(batch)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds a batch's gradient to the step's; ranks are averaged."""
        self._engine.backward(loss)
        if self._engine.is_gradient_accumulation_boundary() and self.config.zero_stage == 0:
            gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
            self._norm_at_stage_0 = torch.nn.utils.get_total_norm(gradients)
        # DeepSpeed counts batches in step(), which leaves the weights alone before the last one.
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self, learning_rate: float) -> None:
        """Clips, updates the weights, clears the gradients."""
        assert self._engine.is_gradient_accumulation_boundary(), "batches are still missing from this step"
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["learning_rate_share"]
        self._engine.step()

    def gradient_norm(self) -> float:
        """The norm of the last step's gradient, before clipping; waits for the device."""
        if self.config.zero_stage == 0:
            return float(self._norm_at_stage_0)
        norm = self._engine.get_global_grad_norm()
        assert norm is not None, "no step was taken yet"
        return float(norm)

    def whole_model(self) -> NavitClip:
        """The weights as they are now, in a model without DeepSpeed's hooks, on every rank.

        Where weights are sharded (ZeRO-3) this gathers a copy, which all ranks must ask for together.
        Evaluation then runs each rank at its own pace.
        """
        if self.config.zero_stage < 3:
            return self._module
        with deepspeed.zero.GatheredParameters(list(self._module.parameters())):
            weights = {name: value.detach().clone() for name, value in self._module.named_parameters()}
        with torch.device("meta"):  # no random draws: the run's own stay as they were
            whole = NavitClip(self._module.config)
        whole.compute_dtype = self.config.compute_dtype
        whole.load_state_dict(weights, assign=True)
        return whole

    def save(self, folder: Path) -> None:
        """Writes weights, optimizer and step count below a folder; every rank calls it."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine.save_checkpoint(
                str(folder), tag="engine", save_latest=False, exclude_frozen_parameters=False
            )

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, bit for bit, at the same ZeRO stage and number of ranks.

        Weight decay and all else that the run's config says of the optimizer stays as it is now.

        Raises:
            CheckpointError: the files are missing or broken, or were written by another stage or world size.
        """
        groups = self._optimizer.param_groups
        settings = [{name: group[name] for name in group if name != "params"} for group in groups]
        try:
            path, _ = self._engine.load_checkpoint(str(folder), tag="engine")
        except (OSError, EOFError, UnpicklingError, AssertionError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{folder}: DeepSpeed cannot restore it: {error}") from error
        if path is None:
            raise CheckpointError(f"{folder}: no engine state of DeepSpeed in it")
        for group, own in zip(self._optimizer.param_groups, settings, strict=True):
            group.update(own)


def deepspeed_config(config: EngineConfig) -> dict[str, Any]:
    """DeepSpeed's own settings for ours."""
    return {
        # A packed batch holds as many pairs as fit its tokens; DeepSpeed only wants a number here.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clipping,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        # The model casts by itself, here and in evaluation; this has what ranks exchange cast, too.
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 2**31,
    }
