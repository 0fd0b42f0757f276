"""What the streamed sigmoid loss takes, beside the same loss on the whole matrix of comparisons.

    python benchmarks/loss.py

Forward and backward on one rank, fp32. Times are CPU seconds of the process, medians of rounds in which both
take turns. Memory is the most that the process held beyond what it held before, less the gradients of the
embeddings; each is measured in a process of its own. The streamed loss also runs on --large pairs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import turns
from navit_clip.batch import Embeddings
from navit_clip.distributed import World
from navit_clip.loss import LossConfig, contrastive_loss

ALONE = World(rank=0, size=1, device=turns.CPU)
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the streamed loss with the dense one.")
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--large", type=int, default=32768)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {arguments.dim} values a vector, fp32\n")
    print("| loss | pairs | CPU seconds | memory beyond inputs and gradients |\n|---|---|---|---|")

    leaves = make_leaves(arguments.pairs, arguments.dim)
    runs = {name: partial(run, name, leaves) for name in LOSSES}
    timings = turns.take_turns(runs, arguments.rounds, clock=time.process_time)
    del leaves, runs
    medians = {name: timing.seconds for name, timing in timings.items()}
    memory = {name: turns.apart(peak_memory, name, arguments.pairs, arguments.dim) for name in LOSSES}
    for name in LOSSES:
        print(f"| {name} | {arguments.pairs} | {medians[name]:.2f} | {memory[name] / MIB:.0f} MiB |")
    large = turns.apart(peak_memory, "sigmoid, streamed", arguments.large, arguments.dim)
    print(f"| sigmoid, streamed | {arguments.large} | | {large / MIB:.0f} MiB |")
    print(
        f"\nstreamed / dense: {medians['sigmoid, streamed'] / medians['sigmoid, dense']:.2f} of the time, "
        f"{memory['sigmoid, streamed'] / memory['sigmoid, dense']:.1%} of the memory"
    )


def make_leaves(pairs: int, dim: int) -> list[torch.Tensor]:
    """Images, captions, t and b, that take gradients."""
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(pairs, dim, generator=generator), dim=1) for _ in range(2))
    leaves = [image, text, torch.tensor([10.0]), torch.tensor([-10.0])]
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves


def dense(leaves: list[torch.Tensor]) -> torch.Tensor:
    """Algorithm 1 of SigLIP."""
    image, text, scale, bias = leaves
    logits = scale * image @ text.T + bias
    labels = 2 * torch.eye(len(image)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


def streamed(kind: str) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    def loss(leaves: list[torch.Tensor]) -> torch.Tensor:
        image, text, scale, bias = leaves
        embeddings = Embeddings(image, text, torch.arange(len(image)), scale, bias)
        return contrastive_loss(LossConfig(kind=kind), embeddings, [len(image)], ALONE)  # type: ignore[arg-type]

    return loss


LOSSES = {
    "sigmoid, dense": dense,
    "sigmoid, streamed": streamed("sigmoid"),
    "softmax, streamed": streamed("softmax"),
}


def run(name: str, leaves: list[torch.Tensor]) -> None:
    """Forward and backward."""
    for leaf in leaves:
        leaf.grad = None
    LOSSES[name](leaves).backward()


def peak_memory(name: str, pairs: int, dim: int) -> int:
    """Bytes that a loss takes beyond inputs and gradients; in a process of its own."""
    run(name, make_leaves(64, dim))  # what libraries set up once is not the loss's
    leaves = make_leaves(pairs, dim)
    taken = turns.peak_memory(partial(run, name, leaves), turns.CPU)
    return taken - sum(leaf.grad.nbytes for leaf in leaves if leaf.grad is not None)


if __name__ == "__main__":
    main()
