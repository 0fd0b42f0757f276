"""How time and memory of the packed image tower grow with the tokens of a batch.

    python -m benchmarks.growth
    python -m benchmarks.growth --memory

Forward and backward on images of 224 px, 196 patches each, 2k to 64k tokens a batch; a tower of width 192
and six blocks, fp32 on a CPU and bfloat16 on a GPU. Times in turns, medians, in a process that keeps what it
frees; those to the first are counted in the time of a large matrix product, taken before and after every
turn, since a machine's rate may change from minute to minute. Memory is what forward and backward need at
most beyond weights and inputs, each in a process of its own where freed memory goes back.
"""

from __future__ import annotations

import argparse
import os

import torch

from benchmarks import turns
from benchmarks.peers.contender import Machine, forward_and_backward
from benchmarks.peers.image_towers import image_towers
from benchmarks.peers.workload import CASES, Size, draw_pictures
from navit_clip.model import choose_backend

SIZE = Size(width=192, depth=6, num_heads=3, mlp_dim=768)
PATCHES = 196
TOKENS = tuple(2**power for power in range(11, 17))
MIB = 2**20
KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""glibc's, for processes to come: they keep what they free, as a GPU's allocator does. By default blocks
above 32 MiB go back and are cleared page by page when they come again, as tensors of 64k tokens are."""


def main() -> None:
    arguments = _parser().parse_args()
    numbers = {tokens: round(tokens / PATCHES) for tokens in arguments.tokens}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    if arguments.memory:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"  # the processes to come give back what they free
        print("| tokens | peak memory | KiB a token |\n|---|---|---|")
        for tokens, number in numbers.items():
            held = turns.apart(memory, number)
            print(f"| {tokens} | {held / MIB:.0f} MiB | {held / 1024 / number / PATCHES:.1f} |", flush=True)
        return
    os.environ.update(KEEP_FREED)
    timings = turns.apart(times, numbers, arguments.rounds)
    print("| tokens | microseconds a token | to the first | spread |\n|---|---|---|---|")
    first = next(iter(timings.values())).yards / next(iter(numbers.values()))
    for tokens, number in numbers.items():
        timing = timings[str(tokens)]
        each, ratio = timing.seconds / number / PATCHES, timing.yards / number / first
        print(f"| {tokens} | {1e6 * each:.1f} | {ratio:.2f} | {timing.spread:.0%} |", flush=True)


def times(numbers: dict[int, int], rounds: int) -> dict[str, turns.Timing]:
    """Of so many images for each number of tokens, in turns."""
    machine = Machine.here()
    runs = {str(tokens): make_run(number, machine) for tokens, number in numbers.items()}
    product, _ = turns.matrix_product(machine.device, machine.dtype)
    return turns.take_turns(runs, rounds, machine.device, yardstick=product)


def make_run(number: int, machine: Machine):
    """Forward and backward of so many images."""
    choose_backend("auto", machine.device, machine.dtype)
    case = CASES["equal"]
    packed, *_ = image_towers(SIZE, draw_pictures(case, number, 0), case.most_tokens)
    return forward_and_backward(packed.build(machine), machine)


def memory(number: int) -> int:
    """Bytes at most."""
    machine = Machine.here()
    make_run(1, machine)()  # what libraries set up once is not the batch's
    return turns.peak_memory(make_run(number, machine), machine.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--memory", action="store_true", help="memory instead of time")
    parser.add_argument("--rounds", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
