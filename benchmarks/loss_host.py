"""What the loss of many ranks costs a host: the time to start all that it does with a node's captions.

    python -m benchmarks.loss_host --ranks 1024

One process is rank 0 of that many, in PyTorch's group of ranks that are not there: it sends nothing, and is
sent nothing. Pairs and vectors are so few and short that to compute with them takes no time to speak of. What
a transport and a GPU's driver add is not in it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from navit_clip.batch import Embeddings
from navit_clip.distributed import World
from navit_clip.loss import LossConfig, contrastive_loss

RANKS_PER_NODE = 8
PAIRS, DIM = 2, 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.ranks < 2 * RANKS_PER_NODE or arguments.ranks % RANKS_PER_NODE:
        parser.error(f"--ranks: expected two nodes of {RANKS_PER_NODE} or more, found {arguments.ranks}")
    dist.init_process_group("fake", rank=0, world_size=arguments.ranks, store=FakeStore())
    world = World(0, arguments.ranks, torch.device("cpu")).in_nodes_of(RANKS_PER_NODE)
    image, text = (F.normalize(torch.randn(PAIRS, DIM), dim=1).requires_grad_() for _ in range(2))
    scalars = [torch.tensor([value]) for value in (10.0, -10.0)]
    embeddings = Embeddings(image, text, torch.arange(PAIRS), *scalars)
    seconds = []
    for _ in range(1 + arguments.rounds):
        start = time.perf_counter()
        contrastive_loss(LossConfig(), embeddings, [PAIRS] * arguments.ranks, world)
        seconds.append(time.perf_counter() - start)
    nodes = arguments.ranks // RANKS_PER_NODE
    taken = [1e6 * total / nodes for total in seconds[1:]]  # the first warms up
    print(f"{nodes} nodes: {statistics.median(taken):.0f} us a node, {min(taken):.0f} to {max(taken):.0f}")


if __name__ == "__main__":
    main()
