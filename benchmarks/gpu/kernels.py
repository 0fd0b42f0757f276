"""Attention by every backend that runs here, and the loss: floating-point operations a second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import turns
from benchmarks.gpu.lengths import b16_lengths, fitting
from benchmarks.gpu.rows import Measure
from benchmarks.peers.contender import Machine
from navit_clip.batch import Embeddings, offsets_of
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from navit_clip.loss import LossConfig, contrastive_loss
from navit_clip.model.attention import Backend, choose_backend, packed_attention

HEADS, HEAD_DIM, DIM = 12, 64, 768
BUDGET = {"cuda": 65536, "cpu": 512}
"""Image tokens of a pack."""
PAIRS = {"cuda": 4096, "cpu": 256}
ROUNDS = {"cuda": 5, "cpu": 1}


def kernel_rows() -> dict[str, Measure]:
    """A row for each backend and kind of pack, and for the loss, beside a large matrix product."""
    machine = Machine.here()
    budget = BUDGET[machine.device.type]
    packs = {"b16's draws": fitting(b16_lengths(), budget), "196 each": [196] * max(1, budget // 196)}
    rows: dict[str, Measure] = {
        f"{backend}, {name}": partial(attention_row, backend, lengths, machine)
        for name, lengths in packs.items()
        for backend in get_args(Backend)
        if _runs(backend, machine)
    }
    rows[f"sigmoid loss, {PAIRS[machine.device.type]} pairs"] = partial(loss_row, machine)
    rows["matrix product"] = partial(product_row, machine)
    return rows


def attention_row(backend: Backend, lengths: list[int], machine: Machine) -> dict[str, float]:
    """Forward and backward on one pack, from a gradient that is there: nothing but attention is timed."""
    choose_backend(backend, machine.device, machine.dtype)
    offsets = offsets_of(lengths).to(machine.device)
    shape = (sum(lengths), HEADS, HEAD_DIM)
    options: dict[str, Any] = {"device": machine.device, "dtype": machine.dtype}
    query, key, value = (torch.randn(shape, **options, requires_grad=True) for _ in "qkv")
    gradient = torch.randn(shape, **options)

    def both() -> None:
        attended = packed_attention(query, key, value, offsets, max(lengths))
        torch.autograd.grad(attended, (query, key, value), gradient)

    return _rate(both, 3 * 4.0 * HEADS * HEAD_DIM * sum(length**2 for length in lengths), machine)


def _runs(backend: Backend, machine: Machine) -> bool:
    try:
        choose_backend(backend, machine.device, machine.dtype)
    except ConfigError as error:
        print(error)
        return False
    return True


def loss_row(machine: Machine) -> dict[str, float]:
    """Of one rank's pairs, forward and backward."""
    pairs = PAIRS[machine.device.type]
    image, text = (
        F.normalize(torch.randn(pairs, DIM, device=machine.device), dim=1).requires_grad_() for _ in "xy"
    )
    scalars = [torch.tensor([value], device=machine.device, requires_grad=True) for value in (10.0, -10.0)]
    return _rate(partial(_loss, image, text, scalars, machine), 3 * 2.0 * pairs**2 * DIM, machine)


def product_row(machine: Machine) -> dict[str, float]:
    """What the machine can do."""
    return _rate(*turns.matrix_product(machine.device, machine.dtype), machine)


def _loss(image: Tensor, text: Tensor, scalars: list[Tensor], machine: Machine) -> None:
    identity = torch.arange(len(image), device=machine.device)
    world = World(rank=0, size=1, device=machine.device)
    embeddings = Embeddings(image, text, identity, *scalars)
    contrastive_loss(LossConfig(), embeddings, [len(image)], world).backward()


def _rate(run: Callable[[], object], flops: float, machine: Machine) -> dict[str, float]:
    seconds = turns.take_turns({"": run}, ROUNDS[machine.device.type], machine.device)[""].seconds
    return {"milliseconds": 1e3 * seconds, "tflops": flops / seconds / 1e12}
