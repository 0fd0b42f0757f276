"""What the optimizer remembers of each weight, whole and by the weight's name, at any ranks and ZeRO stage.

AdamW remembers the means of a weight's gradient and of its square, Muon one of the gradient alone. ZeRO keeps
them flat, those of many weights one after the other, and a share of that on each rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from navit_clip.distributed import World
from navit_clip.errors import CheckpointError
from training.quiet_deepspeed import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
)
from training.shares import Shares

ADAMW, MUON = ("exp_avg", "exp_avg_sq"), ("momentum_buffer",)


class Moments:
    """Reads and writes what an optimizer under DeepSpeed remembers.

    Args:
        parameters: of the model, by name.
        optimizer: AdamW or Muon.
        zero: DeepSpeed's wrapper of it at stages 1 to 3.
        stage: of ZeRO.
        offloads: whether the optimizer's state has a place of its own.
        world: the ranks.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        zero: Any,
        stage: int,
        offloads: bool,
        world: World,
    ):
        self._trained = {name: weight for name, weight in parameters.items() if weight.requires_grad}
        self._state = optimizer.state
        self._zero = zero
        self._stage = stage
        self._offloads = offloads
        self._world = world
        self._shares = Shares(stage, world)

    def steps(self) -> int:
        """Steps that the optimizer has taken: skipped ones are not among them."""
        states = (self._state.get(owned, {}) for owned, _ in self._owned())
        return max((int(state["step"]) for state in states if "step" in state), default=0)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """NAME.MOMENT and its value for each weight that is trained; all ranks call it together."""
        if not self.steps():
            return
        self._link()
        held = self._momenta_held_whole()
        holders = self._world.gather_objects([name for name in self._trained if name in held])
        for name, parameter in self._trained.items():
            for moment in _moments_of(parameter):
                first = next((rank for rank, names in enumerate(holders) if name in names), None)
                if not self._stage:
                    value = self._state[parameter][moment]
                elif first is not None:
                    value = held[name] if first == self._world.rank else torch.zeros_like(parameter)
                    value = self._world.sum(value)
                else:
                    value = safe_get_full_optimizer_state(parameter, moment)
                assert value is not None
                yield f"{name}.{moment}", value

    def restore(self, values: Mapping[str, Tensor], steps: int) -> None:
        """Makes all of this what it was after `steps`; only what this rank has a part of is read.

        Raises:
            CheckpointError: a weight that is trained has no such moments there.
        """
        if not steps:
            return
        for name, parameter in self._trained.items():
            for moment in _moments_of(parameter):
                if f"{name}.{moment}" not in values:
                    raise CheckpointError(
                        f"{name}: no {moment} of the optimizer's: was it frozen, or optimizer.kind another?"
                    )
        if self._stage == 3:
            self._restore_sharded(values, steps)
            return
        for owned, is_muon in self._owned():
            self._state[owned] = _blank(owned, is_muon, steps)
        self._link()
        held = self._momenta_held_whole()
        for name, parameter in self._trained.items():
            for moment in _moments_of(parameter):
                if self._stage and name not in held and getattr(parameter, "_hp_mapping", None) is None:
                    continue  # all of it is on other ranks
                value = values[f"{name}.{moment}"].to(self._world.device)
                if not self._stage:
                    self._state[parameter][moment].copy_(value)
                elif name in held:
                    held[name].copy_(value)
                else:
                    safe_set_full_optimizer_state(parameter, value, moment)

    def momenta(self) -> list[tuple[Tensor, Tensor | None]]:
        """A copy of what Muon remembers of this rank's share, beside what it steps on; None for nothing."""
        copies = []
        for owned, is_muon in self._owned():
            if is_muon:
                momentum = self._state.get(owned, {}).get("momentum_buffer")
                copies.append((owned, None if momentum is None else momentum.clone()))
        return copies

    def put_back(self, momenta: list[tuple[Tensor, Tensor | None]]) -> None:
        """Makes Muon remember what it did when the copy was taken."""
        for owned, before in momenta:
            momentum = self._state.get(owned, {}).get("momentum_buffer")
            if momentum is not None and before is not None:
                momentum.copy_(before)
            elif momentum is not None:
                momentum.zero_()

    def _restore_sharded(self, values: Mapping[str, Tensor], steps: int) -> None:
        """At stage 3, where what is on NVMe is in memory for one group of weights at a time."""
        names = {id(weight): name for name, weight in self._trained.items()}
        for group, weights in enumerate(self._zero.fp16_groups):
            swaps = self._zero._swappable_optimizer_subgroup(group)
            if swaps:
                self._zero._optimizer_states_and_gradient_swap_in(group)
            owned = self._zero.fp32_partitioned_groups_flat[group]
            state = self._state[owned] = _blank(owned, _is_muon(weights[0]), steps)
            for weight in weights:
                _, start, size = self._zero.grad_position[self._zero.get_param_id(weight)]
                for moment in _moments_of(weight):
                    share = self._shares.cut(values[f"{names[id(weight)]}.{moment}"], weight)
                    state[moment][start : start + size].copy_(share)
            if swaps:
                self._zero._optimizer_states_and_gradient_swap_out(group)

    def _owned(self) -> Iterator[tuple[Tensor, bool]]:
        """What the optimizer itself steps on, flat at stages 1 to 3, and whether Muon does."""
        if not self._stage:
            flat, groups = self._trained.values(), [[weight] for weight in self._trained.values()]
        elif self._stage == 3:
            flat, groups = self._zero.fp32_partitioned_groups_flat, self._zero.fp16_groups
        else:
            flat, groups = self._zero.single_partition_of_fp32_groups, self._zero.bit16_groups
        for owned, weights in zip(flat, groups, strict=True):
            yield owned, _is_muon(weights[0])

    def _link(self) -> None:
        """Tells DeepSpeed, at stages 1 and 2, where each weight's moments lie in the flat ones.

        It does so by itself after the first group of weights has been stepped on for the first time, when the
        groups after it have no moments yet, and never again.
        """
        if self._stage in (1, 2):
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _momenta_held_whole(self) -> dict[str, Tensor]:
        """Muon's at stages 1 and 2: each rank has the whole of it for every weight that it has a part of."""
        if self._stage not in (1, 2) or self._offloads:
            return {}
        names = {id(weight): name for name, weight in self._trained.items()}
        held = {}
        flat = self._zero.single_partition_of_fp32_groups
        for owned, weights in zip(flat, self._zero.params_in_partition, strict=True):
            if not weights or not _is_muon(weights[0]):
                continue
            sizes = [weight.numel() for weight in weights]
            state = self._state[owned]
            if state["momentum_buffer"].numel() != sum(sizes):
                state["momentum_buffer"] = owned.new_zeros(sum(sizes))
            for weight, momentum in zip(weights, state["momentum_buffer"].split(sizes), strict=True):
                held[names[id(weight)]] = momentum.view(weight.shape)
        return held


def _blank(owned: Tensor, is_muon: bool, steps: int) -> dict[str, Tensor]:
    """The state of what the optimizer steps on, yet to be filled."""
    if is_muon:
        return {"momentum_buffer": torch.zeros_like(owned)}
    step = torch.tensor(float(steps), device=owned.device)
    return {"step": step, **{moment: torch.zeros_like(owned) for moment in ADAMW}}


def _is_muon(weight: Any) -> bool:
    return getattr(weight, "use_muon", False)


def _moments_of(weight: nn.Parameter) -> tuple[str, ...]:
    return MUON if _is_muon(weight) else ADAMW
