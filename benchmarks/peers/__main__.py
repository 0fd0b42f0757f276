"""How fast the packed towers are, beside the peers' and beside the machine.

    python -m benchmarks.peers image --size s16 --case mixed --images 16
    python -m benchmarks.peers image --size s16 --case mixed --images 16 --memory
    python -m benchmarks.peers text --size b16 --images 64
    python -m benchmarks.peers step --size b16 --images 8

One process, one set of images and captions, weights of the same shapes; every model gets its input ready made
and all take turns, so that whatever else the machine does falls on all alike. Medians, and the spread of a
model's turns. On a GPU in bfloat16 under autocast, on a CPU in fp32. Peers that are not installed are named
and left out: pip install 'navit-clip[peers]' brings them.

The share of the peak is floating-point operations a second on real tokens, the same number of operations for
all, over those of a large matrix product. It is timed before and after every turn, and the shares and the
peers' times are all counted in its time, since what a machine can do changes from minute to minute. Peak
memory is what forward and backward need beyond weights and inputs, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import turns
from benchmarks.graphs import CountedGraphs
from benchmarks.peers.contender import Machine, forward_alone, forward_and_backward
from benchmarks.peers.image_towers import tower_config as image_config
from benchmarks.peers.line_up import captions, pictures, tower_memory, towers
from benchmarks.peers.text_towers import tower_config as text_config
from benchmarks.peers.workload import CASES, CONTEXT_LENGTH, SIZES, Picture, Size, draw_captions
from navit_clip.distributed import World
from navit_clip.model import choose_backend
from navit_clip.model.flops import image_tower_flops, text_tower_flops

MIB = 2**20


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    machine = Machine.here()
    backend = choose_backend("auto", machine.device, machine.dtype)
    print(
        f"torch {torch.__version__}, {machine.device.type}, {torch.get_num_threads()} threads, "
        f"{machine.dtype}, {backend} attention; {arguments.what}, {arguments.size}, {arguments.case}"
    )
    if arguments.what == "step":
        rows = step_rows(arguments, machine)
    elif arguments.memory:
        rows = memory_rows(arguments)
    else:
        rows = tower_rows(arguments, machine)
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def tower_rows(arguments: argparse.Namespace, machine: Machine) -> list[dict[str, Any]]:
    """Speed of one tower of each; where some are compiled, also their graphs, and those after warming up."""
    turn = forward_alone if arguments.forward else forward_and_backward
    runs: dict[str, Callable[[], object]] = {
        contender.name: turn(contender.build(machine), machine) for contender in towers(arguments)
    }
    if arguments.compiled:
        runs = {name: CountedGraphs(run) for name, run in runs.items()}
    if arguments.what == "image":
        work = image_work(SIZES[arguments.size], pictures(arguments), not arguments.forward)
    else:
        work = text_work(SIZES[arguments.size], captions(arguments), not arguments.forward)
    rows = rates(runs, arguments.images, dict.fromkeys(runs, work), arguments.rounds, machine)
    counted = {name: run.row for name, run in runs.items() if isinstance(run, CountedGraphs)}
    return [{**row, **counted.get(row["name"], {})} for row in rows]


def step_rows(arguments: argparse.Namespace, machine: Machine) -> list[dict[str, Any]]:
    """Speed of a whole step. Both of ours count the tokens and operations that they have."""
    # Towers alone run without DeepSpeed.
    from benchmarks.peers.steps import CLIPPING, make_batch, model_config, open_clip_step, packed_step
    from training.engine import EngineConfig

    size, number = SIZES[arguments.size], arguments.images
    images = pictures(arguments)
    precision = "fp32" if machine.dtype == torch.float32 else "bf16"
    engine = EngineConfig(precision=precision, gradient_clipping=CLIPPING)
    full, real = (draw_captions(number, length, arguments.seed) for length in (CONTEXT_LENGTH, None))
    with World.join() as world:
        captions_of = {
            "packed, 64 tokens a caption": full,
            "packed, captions as they are": real,
            "open_clip, 64 tokens a caption": full,
        }
        *ours, open_clip = captions_of
        runs: dict[str, Callable[[], object]] = {
            name: packed_step(model_config(size), [make_batch(images, captions_of[name])], engine, world)
            for name in ours
        }
        runs[open_clip] = open_clip_step(size, images, full, machine)
        seen = image_work(size, images, backward=True)
        work = {name: seen + text_work(size, texts, backward=True) for name, texts in captions_of.items()}
        return rates(runs, number, work, arguments.rounds, machine)


@dataclass(frozen=True, slots=True)
class Work:
    """What a turn has to do."""

    tokens: int
    """Real ones."""
    flops: float
    """Operations on them."""

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.flops + other.flops)


def image_work(size: Size, images: Sequence[Picture], backward: bool) -> Work:
    """Of an image tower."""
    lengths = torch.tensor([len(picture.pixels) for picture in images])
    return Work(int(lengths.sum()), image_tower_flops(image_config(size), lengths, backward))


def text_work(size: Size, texts: Sequence[Sequence[int]], backward: bool) -> Work:
    """Of a text tower."""
    lengths = torch.tensor([len(caption) for caption in texts])
    return Work(int(lengths.sum()), text_tower_flops(text_config(size), size.width, lengths, backward))


def rates(
    runs: dict[str, Callable[[], object]],
    number: int,
    work: Mapping[str, Work],
    rounds: int,
    machine: Machine,
) -> list[dict[str, Any]]:
    """A row for each; the first is ours.

    Args:
        runs: by name.
        number: pairs or images of a turn.
        work: of a turn, by name.
        rounds: turns of each.
        machine: where.
    """
    product, product_flops = turns.matrix_product(machine.device, machine.dtype)
    timings = turns.take_turns(runs, rounds, machine.device, yardstick=product)
    first = next(iter(timings.values()))
    peak = product_flops * first.yards / first.seconds
    print(f"{number} pairs or images; matrix product about {peak / 1e9:.0f} GFLOP/s")
    return [
        {
            "name": name,
            "images_per_second": number / timing.seconds,
            "tokens_per_second": work[name].tokens / timing.seconds,
            "times_the_first": timing.yards / first.yards,
            "spread": timing.spread,
            "share_of_peak": work[name].flops / (timing.yards * product_flops),
        }
        for name, timing in timings.items()
    ]


def memory_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of each tower's forward and backward."""
    return [
        {"name": contender.name, "peak_mib": turns.apart(tower_memory, arguments, contender.name) / MIB}
        for contender in towers(arguments)
    ]


def print_table(rows: list[dict[str, Any]]) -> None:
    columns = list(rows[0])
    print(f"\n| {' | '.join(column.replace('_', ' ') for column in columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        print(f"| {' | '.join(_cell(column, value) for column, value in row.items())} |")


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if column in ("spread", "share_of_peak"):
        return f"{value:.0%}"
    return f"{value:.2f}x" if column == "times_the_first" else f"{value:.4g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["image", "text", "step"])
    parser.add_argument("--size", choices=list(SIZES), default="s16")
    parser.add_argument("--case", choices=list(CASES), default="equal", help="of images")
    parser.add_argument("--images", type=int, default=16, help="images, captions or pairs")
    parser.add_argument("--forward", action="store_true", help="without a backward pass")
    parser.add_argument(
        "--compiled", action="store_true", help="ours and timm compiled, too: a minute or more to compile"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each, after one to warm up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    return parser


if __name__ == "__main__":
    main()
