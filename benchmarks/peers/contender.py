"""One who takes part: how it is built, and what it runs in its turn."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Carrier = TypeVar("Carrier")


class Machine(NamedTuple):
    """Where all run, and in what."""

    device: torch.device
    dtype: torch.dtype
    """Of matrix products and attention; weights are fp32, and half precision is autocast, for all alike."""

    @classmethod
    def here(cls) -> Machine:
        """A GPU in bfloat16 where there is one, else the CPU in fp32."""
        on_gpu = torch.cuda.is_available()
        return cls(torch.device("cuda" if on_gpu else "cpu"), torch.bfloat16 if on_gpu else torch.float32)

    @property
    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


class Contender(NamedTuple):
    """A name in the table, and how to get there."""

    name: str
    package: str
    """What it needs, as it is imported."""
    build: Callable[[Machine], Callable[[], Tensor]]
    """Makes the model and its input, and returns its forward: one vector for each image or caption."""

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


def forward_and_backward(model_forward: Callable[[], Tensor], machine: Machine) -> Callable[[], object]:
    """A turn with gradients, which the one before left behind."""

    def run() -> None:
        with machine.autocast:
            vectors = model_forward()
        vectors.float().square().mean().backward()

    return run


def forward_alone(model_forward: Callable[[], Tensor], machine: Machine) -> Callable[[], object]:
    """A turn without a graph."""

    def run() -> None:
        with torch.inference_mode(), machine.autocast:
            model_forward()

    return run
