"""DeepSpeed behind a few words: embed, backward, step, state, restore.

DeepSpeed's own JSON is generated here from the run's config and from nothing else. On machines without a
GPU the same engine runs on the CPU with gloo.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from navit_clip.batch import Batch, Embeddings
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from navit_clip.model import ClipConfig, TwoTowers
from navit_clip.model.blocks import Block, Linear
from training.average import MovingAverage
from training.moments import Moments
from training.quiet_deepspeed import AsyncIOBuilder, deepspeed, set_z3_leaf_modules
from training.shares import Shares

OFFLOADS_FROM = {"none": 0, "cpu": 1, "nvme": 3}
"""The ZeRO stage from which on DeepSpeed keeps the optimizer's state in a place of its own."""

BUCKET = 50_000_000
"""Numbers that ZeRO exchanges at once; a larger weight goes alone. DeepSpeed's default, ten times as many,
has room for all of most towers: no gradient would leave before the last, and two buffers would take 4 GB."""

EXCHANGED_IN_HALF = (torch.nn.Linear, Linear)
"""Layers whose weights and gradients ranks exchange in the precision of the products. DeepSpeed asks for a
module's very class; what it does not find here (norms, embeddings, the pooling's query) goes in fp32."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the model's state is spread over ranks, and in what precision it computes."""

    zero_stage: int = 0
    """DeepSpeed ZeRO: 0 replicates; 1 shards optimizer states, 2 gradients too, 3 weights too."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where the optimizer's state is kept: none, with the weights; cpu, in the host's memory, where it then
    takes its steps, for ZeRO 1 to 3; nvme, in files of `offload_folder`, for ZeRO 3."""
    offload_folder: str = ""
    """For nvme: a folder on a disk of the machine's own; ranks of all machines have one of this path. Of one
    run alone: another would write over its files."""
    compile: bool = False
    """Have torch.compile fuse what blocks do to each token by itself. It takes a minute or so at the first
    step, and again at the first evaluation."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: matrix products and attention in bfloat16 under autocast; weights, norms, the logits and
    the optimizer stay in fp32. fp32: everything, for CPUs and for tests."""
    accumulation: int = 1
    """Batches per optimizer step and rank, all contrasted with each other: the gradient is that of one batch
    as large as all of them, for one more forward of each."""
    gradient_clipping: float = 1.0
    """Largest norm of the gradient of all parameters; 0 clips nothing."""
    average_decay: float = 0.0
    """Share of a moving average of the weights that stays at each step. The average is then what is
    evaluated, saved as the model and exported; 0 keeps none."""
    max_skipped_steps: int = 5
    """Steps in a row whose gradient is not finite, which are skipped, after which a run stops."""

    def __post_init__(self):
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"zero_stage: expected 0, 1, 2 or 3, found {self.zero_stage}")
        least = OFFLOADS_FROM[self.offload_optimizer]
        if self.zero_stage < least:
            raise ConfigError(
                f"offload_optimizer: {self.offload_optimizer} needs zero_stage {least} at least, "
                f"found {self.zero_stage}"
            )
        if (self.offload_optimizer == "nvme") != bool(self.offload_folder):
            raise ConfigError(
                f"offload_folder: expected a folder for offload_optimizer nvme and none for others, found "
                f"{self.offload_folder!r} and {self.offload_optimizer}"
            )
        for name in ("accumulation", "max_skipped_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.gradient_clipping < 0:
            raise ConfigError(f"gradient_clipping: expected at least 0, found {self.gradient_clipping}")
        if not 0 <= self.average_decay < 1:
            raise ConfigError(f"average_decay: expected in [0, 1), found {self.average_decay}")

    @property
    def compute_dtype(self) -> torch.dtype:
        """What matrix products and attention run in."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """All that an engine remembers, whole and in the host's memory, whatever the ranks and the ZeRO stage."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """By the names of the model's parameters."""
    average: Mapping[str, Tensor] = field(default_factory=dict)
    """The moving average of the weights, where one is kept."""
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    """NAME.exp_avg and NAME.exp_avg_sq of every weight that is trained, or NAME.momentum_buffer of Muon's."""
    optimizer_steps: int = 0
    """Steps that the optimizer has taken: skipped ones are not among them."""


class Engine:
    """A model and its optimizer under DeepSpeed, on every rank.

    Call `embed` and `backward` for each of `accumulation` batches, then `step`.
    """

    def __init__(
        self, config: EngineConfig, model: TwoTowers, optimizer: torch.optim.Optimizer, world: World
    ):
        self.config = config
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it, launched or not
        self._world = world
        self._module = model.to(world.device)
        self._module.compute_dtype = config.compute_dtype
        self._norm = 0.0
        if config.offload_optimizer == "nvme":
            _check_can_swap()
        if config.zero_stage == 3:  # a block's weights come and go together
            set_z3_leaf_modules(self._module, [Block])
        if config.compile:
            for tower in (self._module.image, self._module.text):
                tower.transformer.compile_blocks()
        uses_muon = any(group["use_muon"] for group in optimizer.param_groups)
        self._optimizer: Any  # one of DeepSpeed's wrappers, or at stage 0 the optimizer itself
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what nobody asked for
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=self._module,
                optimizer=optimizer,
                config=deepspeed_config(config, uses_muon),
                dist_init_required=False,
            )
        if world.size == 1 and not config.zero_stage:
            # It would copy all gradients together and back, to sum them over one rank.
            self._engine.enable_backward_allreduce = False
        self._parameters = dict(self._module.named_parameters())
        self._shares = Shares(config.zero_stage, world)
        offloads = config.offload_optimizer != "none"
        self._moments = Moments(
            self._parameters, optimizer, self._optimizer, config.zero_stage, offloads, world
        )
        # There DeepSpeed takes gradients into Muon's momentum before it sees that another is not finite.
        self._keeps_momenta = uses_muon and (config.zero_stage == 3 or offloads)
        self._average = MovingAverage(self._own(), config.average_decay) if config.average_decay else None

    @property
    def model_config(self) -> ClipConfig:
        """Of the model that is trained."""
        return self._module.config

    def embed(self, batch: Batch) -> Embeddings:
        """The model's embeddings of a batch, with graph unless gradients are off."""
        return self._engine(batch)

    def backward(self, loss: Tensor) -> None:
        """Adds a batch's gradient to the step's; ranks are averaged, batches summed."""
        if self._keeps_momenta and self._engine.micro_steps % self.config.accumulation == 0:
            self._momenta = self._moments.momenta()
        self._engine.backward(loss, scale_wrt_gas=False)
        # DeepSpeed counts batches in step(), which leaves the weights alone before the last one.
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self, learning_rate: float) -> bool:
        """Clips, updates the weights and their average, clears the gradients.

        Returns:
            Whether it did. Where the gradient of any rank is not finite the weights stay as they are, on all
            ranks alike: what is looked at is the norm over all ranks, which clipping needs anyway.
        """
        assert self._engine.is_gradient_accumulation_boundary(), "batches are still missing from this step"
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["learning_rate_share"]
        if self.config.zero_stage:
            self._engine.step()
            applied = self._engine.was_step_applied()
            if self._keeps_momenta and not applied:
                self._moments.put_back(self._momenta)
            norm = float(self._engine.get_global_grad_norm() or 0.0)
        else:
            trained = [p for p in self._parameters.values() if p.grad is not None]
            total = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
            norm = float(total)
            applied = math.isfinite(norm)
            if applied:
                if self.config.gradient_clipping:
                    torch.nn.utils.clip_grads_with_norm_(trained, self.config.gradient_clipping, total)
                self._engine.step()
            else:
                self._module.zero_grad()
                self._engine.micro_steps += 1
        if applied:
            self._norm = norm
            if self._average is not None:
                self._average.update(self._own())
        return applied

    def gradient_norm(self) -> float:
        """The norm of the gradient of the last step that was not skipped, before clipping."""
        return self._norm

    def whole_model(self) -> TwoTowers:
        """The weights as they are now, or their average, in a model without DeepSpeed's hooks, on every rank.

        Where weights are sharded (ZeRO-3) this gathers a copy, which all ranks must ask for together.
        Evaluation then runs each rank at its own pace.
        """
        if self.config.zero_stage < 3 and self._average is None:
            return self._module
        weights = dict(self._whole_weights() if self._average is None else self._whole_average())
        with torch.device("meta"):  # no random draws: the run's own stay as they were
            whole = TwoTowers(self._module.config)
        whole.compute_dtype = self.config.compute_dtype
        whole.load_state_dict(weights, assign=True)
        return whole

    def state(self) -> EngineState:
        """All that `restore` needs, on the main rank, and nothing on the others; all ranks call it."""
        state = EngineState(
            weights=self._on_host(self._whole_weights()),
            average=self._on_host(self._whole_average()),
            moments=self._on_host(self._moments.whole()),
            optimizer_steps=self._moments.steps(),
        )
        return state if self._world.is_main else EngineState()

    def restore(self, state: EngineState) -> None:
        """Goes on where `state` was taken, by whatever ranks and ZeRO stage; every rank has the whole of it.

        The model had the state's weights when the engine was made. Rates, decay and all else that the run's
        config says of the optimizer stays as it is.

        Raises:
            CheckpointError: a weight that is trained has no moments there.
        """
        if self._average is not None and state.average:  # else it starts now, as the weights are
            for value, (name, parameter) in zip(self._average.values, self._parameters.items(), strict=True):
                value.copy_(self._shares.cut(state.average[name].to(value.device), parameter))
        self._moments.restore(state.moments, state.optimizer_steps)

    def _own(self) -> list[Tensor]:
        return self._shares.weights(self._parameters.values())

    def _whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._parameters.items():
            yield name, self._shares.whole(parameter)

    def _whole_average(self) -> Iterator[tuple[str, Tensor]]:
        if self._average is not None:
            for value, (name, parameter) in zip(self._average.values, self._parameters.items(), strict=True):
                yield name, self._shares.joined(value, parameter)

    def _on_host(self, tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies on the main rank, one after the other: no device holds more than one of them whole."""
        copies = {}
        for name, tensor in tensors:
            if self._world.is_main:
                copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return copies


def deepspeed_config(config: EngineConfig, uses_muon: bool = False) -> dict[str, Any]:
    """DeepSpeed's own settings for ours."""
    zero: dict[str, Any] = {"stage": config.zero_stage, "reduce_bucket_size": BUCKET}
    if uses_muon and config.zero_stage == 3:
        zero["reduce_scatter"] = False  # DeepSpeed's Muon does not go with it there
    if config.offload_optimizer != "none":
        place = {"nvme_path": config.offload_folder} if config.offload_optimizer == "nvme" else {}
        pins = torch.cuda.is_available()
        zero["offload_optimizer"] = {"device": config.offload_optimizer, "pin_memory": pins, **place}
    return {
        # A packed batch holds as many pairs as fit its tokens; DeepSpeed only wants a number here.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.accumulation,
        # At stage 0 the engine clips by the norm that it looks at; DeepSpeed would compute it once more.
        "gradient_clipping": config.gradient_clipping if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on the host, too, uncompiled
        # The model casts by itself, here and in evaluation; this has what ranks exchange cast, too.
        "torch_autocast": {
            "enabled": config.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [
                f"{kind.__module__}.{kind.__name__}" for kind in EXCHANGED_IN_HALF
            ],
        },
        "steps_per_print": 2**31,
    }


def _check_can_swap() -> None:
    if not AsyncIOBuilder().is_compatible():
        raise ConfigError(
            "engine.offload_optimizer: nvme needs DeepSpeed's async_io op, which cannot be built here: "
            "install libaio's headers (libaio-dev or libaio-devel), a C++ compiler and ninja"
        )
