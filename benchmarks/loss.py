"""What the streamed sigmoid loss takes, beside the same loss on the whole matrix of comparisons.

    python benchmarks/loss.py

Forward and backward on one rank, fp32. Times are CPU seconds of the process, medians of rounds in which both
take turns. Memory is the most that the process held beyond what it held before, less the gradients of the
embeddings; each is measured in a process of its own. The streamed loss also runs on --large pairs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from navit_clip.batch import Embeddings
from navit_clip.distributed import World
from navit_clip.loss import LossConfig, contrastive_loss

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
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

    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    leaves = make_leaves(arguments.pairs, arguments.dim)
    for turn in range(arguments.rounds + 1):
        for name, loss in LOSSES.items():
            elapsed = cpu_seconds(loss, leaves)
            if turn:  # the first round warms up
                seconds[name].append(elapsed)
    del leaves
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    memory = {name: apart(name, arguments.pairs, arguments.dim) for name in LOSSES}
    for name in LOSSES:
        print(f"| {name} | {arguments.pairs} | {medians[name]:.2f} | {memory[name] / MIB:.0f} MiB |")
    large = apart("sigmoid, streamed", arguments.large, arguments.dim)
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


def cpu_seconds(loss: Callable[[list[torch.Tensor]], torch.Tensor], leaves: list[torch.Tensor]) -> float:
    for leaf in leaves:
        leaf.grad = None
    start = time.process_time()
    loss(leaves).backward()
    return time.process_time() - start


def apart(name: str, pairs: int, dim: int) -> float:
    """Bytes that a loss takes beyond inputs and gradients, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(peak_memory, (name, pairs, dim))


def peak_memory(name: str, pairs: int, dim: int) -> float:
    LOSSES[name](make_leaves(64, dim)).backward()  # what libraries set up once is not the loss's
    leaves = make_leaves(pairs, dim)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    LOSSES[name](leaves).backward()
    gradients = sum(leaf.grad.nbytes for leaf in leaves if leaf.grad is not None)
    return resident("VmHWM") - before - gradients


def resident(name: str) -> int:
    """A figure of this process's memory in bytes, by its name in /proc."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
