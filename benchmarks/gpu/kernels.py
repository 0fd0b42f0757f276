"""Attention by every backend that runs here, and the loss: floating-point operations a second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import turns
from benchmarks.gpu.batches import BUDGET, b16_lengths, fitting
from benchmarks.peers.contender import Machine
from navit_clip.batch import Embeddings, offsets_of
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from navit_clip.loss import LossConfig, contrastive_loss
from navit_clip.model.attention import Backend, choose_backend, packed_attention

HEADS, HEAD_DIM, DIM = 12, 64, 768
PAIRS = {"cuda": 4096, "cpu": 256}


def kernel_rows() -> list[dict[str, Any]]:
    """A row for each backend and kind of pack, and one for the loss."""
    machine, rows = Machine.here(), []
    budget = BUDGET[machine.device.type]
    packs = {"b16's draws": fitting(b16_lengths(), budget), "196 each": [196] * max(1, budget // 196)}
    for name, lengths in packs.items():
        for backend in get_args(Backend):
            rows += attention_rows(f"{backend}, {name}", backend, lengths, machine)
    product, flops = turns.matrix_product(machine.device, machine.dtype)
    seconds = turns.take_turns({"": product}, 5, machine.device)[""].seconds
    return [*rows, loss_row(machine), {"name": "matrix product", "tflops": flops / seconds / 1e12}]


def attention_rows(name: str, backend: Backend, lengths: list[int], machine: Machine) -> list[dict[str, Any]]:
    """Forward and backward on one pack; no row where the backend does not run."""
    try:
        choose_backend(backend, machine.device, machine.dtype)
    except ConfigError as error:
        print(f"{name}: {error}")
        return []
    offsets = offsets_of(lengths).to(machine.device)
    shape = (sum(lengths), HEADS, HEAD_DIM)
    query, key, value = (
        torch.randn(shape, device=machine.device, dtype=machine.dtype, requires_grad=True) for _ in "qkv"
    )

    def both() -> None:
        attended = packed_attention(query, key, value, offsets, max(lengths))
        attended.float().square().mean().backward()

    seconds = turns.take_turns({name: both}, 5, machine.device)[name].seconds
    flops = 3 * 4.0 * HEADS * HEAD_DIM * sum(length**2 for length in lengths)
    return [{"name": name, "milliseconds": 1e3 * seconds, "tflops": flops / seconds / 1e12}]


def loss_row(machine: Machine) -> dict[str, Any]:
    """Of one rank's pairs, forward and backward."""
    pairs = PAIRS[machine.device.type]
    image, text = (
        F.normalize(torch.randn(pairs, DIM, device=machine.device), dim=1).requires_grad_() for _ in "xy"
    )
    scalars = [torch.tensor([value], device=machine.device, requires_grad=True) for value in (10.0, -10.0)]
    run: Callable[[], object] = partial(_loss, image, text, scalars, machine)
    seconds = turns.take_turns({"": run}, 5, machine.device)[""].seconds
    flops = 3 * 2.0 * pairs**2 * DIM
    name = f"sigmoid loss, {pairs} pairs"
    return {"name": name, "milliseconds": 1e3 * seconds, "tflops": flops / seconds / 1e12}


def _loss(image: Tensor, text: Tensor, scalars: list[Tensor], machine: Machine) -> None:
    identity = torch.arange(len(image), device=machine.device)
    world = World(rank=0, size=1, device=machine.device)
    embeddings = Embeddings(image, text, identity, *scalars)
    contrastive_loss(LossConfig(), embeddings, [len(image)], world).backward()
