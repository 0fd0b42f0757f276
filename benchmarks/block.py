"""Where a block's time goes: each of its parts, forward and backward, beside a large matrix product.

    python -m benchmarks.block --size s16 --images 12 --rounds 25

A block on images of 196 patches as towers run it, and compiled; and by themselves its products with weights,
its attention, GELU, norms and sums of biases' gradients, on tensors of the same shapes. All take turns, and
everything is counted in the time of the product beside it, as in `benchmarks.peers`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import turns
from benchmarks.peers.contender import Machine
from benchmarks.peers.image_towers import tower_config
from benchmarks.peers.workload import SIZES, Size
from navit_clip.batch import offsets_of
from navit_clip.model import choose_backend
from navit_clip.model.attention import packed_attention
from navit_clip.model.blocks import Transformer, gelu

LENGTH = 196

Run = Callable[[], object]


def main() -> None:
    arguments = _parser().parse_args()
    machine = Machine.here()
    choose_backend("auto", machine.device, machine.dtype)
    size, tokens = SIZES[arguments.size], arguments.images * LENGTH
    product, product_flops = turns.matrix_product(machine.device, machine.dtype)
    runs, flops = parts(size, arguments.images, machine), part_flops(size, tokens)
    timings = turns.take_turns(runs, arguments.rounds, machine.device, yardstick=product)
    whole = timings["block"].yards
    print("| part | milliseconds | spread | of the block | share of peak |\n|---|---|---|---|---|")
    for name, timing in timings.items():
        share = flops.get(name, 0.0) / (timing.yards * product_flops)
        print(
            f"| {name} | {1e3 * timing.seconds:.1f} | {timing.spread:.0%} | {timing.yards / whole:.1%} "
            f"| {f'{share:.0%}' if share else '-'} |"
        )


def parts(size: Size, images: int, machine: Machine) -> dict[str, Run]:
    """What takes turns, on that many images."""
    tokens = images * LENGTH
    offsets = offsets_of([LENGTH] * images).to(machine.device)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, device=machine.device, dtype=machine.dtype)

    products = [(noise(tokens, i), noise(o, i), noise(tokens, o)) for i, o in layers(size)]

    def weights() -> None:
        for inputs, weight, gradient in products:
            _ = inputs @ weight.T, gradient @ weight, gradient.T @ inputs

    def biases() -> None:
        for _, _, gradient in products:
            gradient.sum(0)

    heads = noise(tokens, 3, size.num_heads, size.width // size.num_heads).unbind(1)
    return {
        "block": whole_block(size, offsets, machine, compiled=False),
        "block, compiled": whole_block(size, offsets, machine, compiled=True),
        "products with weights": weights,
        "attention": both_ways(lambda q, k, v: packed_attention(q, k, v, offsets, LENGTH), *heads),
        "GELU": both_ways(gelu, noise(tokens, size.mlp_dim)),
        "a norm": both_ways(
            lambda values, *weights: F.layer_norm(values, values.shape[1:], *weights),
            *(noise(*shape) for shape in ((tokens, size.width), (size.width,), (size.width,))),
        ),
        "sums of biases' gradients": biases,
    }


def part_flops(size: Size, tokens: int) -> dict[str, float]:
    """Floating-point operations of those parts that are products."""
    weights = 3 * 2.0 * tokens * sum(inputs * outputs for inputs, outputs in layers(size))
    attention = 3 * 4.0 * tokens * LENGTH * size.width
    whole = weights + attention
    return {
        "block": whole,
        "block, compiled": whole,
        "products with weights": weights,
        "attention": attention,
    }


def layers(size: Size) -> list[tuple[int, int]]:
    """Inputs and outputs of a block's linear layers."""
    width, hidden = size.width, size.mlp_dim
    return [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]


def whole_block(size: Size, offsets: Tensor, machine: Machine, compiled: bool) -> Run:
    """Forward and backward, from a gradient that is there."""
    transformer = Transformer(replace(tower_config(size), depth=1)).to(machine.device)
    if compiled:
        transformer.compile_blocks()
    (block,) = transformer.blocks
    tokens = torch.randn(int(offsets[-1]), size.width, device=machine.device, requires_grad=True)
    gradient = torch.randn_like(tokens)

    def run() -> None:
        with machine.autocast:
            made = block(tokens, offsets, LENGTH, None)
        made.backward(gradient)

    return run


def both_ways(function: Callable[..., Tensor], *inputs: Tensor) -> Run:
    """A function and its gradient, on inputs of which all take one."""
    leaves = [part.detach().requires_grad_() for part in inputs]
    gradient = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.block",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=list(SIZES), default="s16")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=25)
    return parser


if __name__ == "__main__":
    main()
