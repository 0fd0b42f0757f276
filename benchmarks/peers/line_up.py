"""Who takes part, on what, for one command line; and what each needs at most, in a process of its own."""

from __future__ import annotations

import argparse

from benchmarks import turns
from benchmarks.peers.contender import Contender, Machine, forward_and_backward
from benchmarks.peers.image_towers import image_towers
from benchmarks.peers.text_towers import text_towers
from benchmarks.peers.workload import CASES, SIZES, Picture, draw_captions, draw_pictures
from navit_clip.model import choose_backend


def pictures(arguments: argparse.Namespace) -> list[Picture]:
    return draw_pictures(CASES[arguments.case], arguments.images, arguments.seed)


def captions(arguments: argparse.Namespace) -> list[list[int]]:
    return draw_captions(arguments.images, None, arguments.seed)


def towers(arguments: argparse.Namespace) -> list[Contender]:
    """Those that are installed."""
    if arguments.what == "image":
        case = CASES[arguments.case]
        everyone = image_towers(SIZES[arguments.size], pictures(arguments), case.most_tokens)
    else:
        everyone = text_towers(SIZES[arguments.size], captions(arguments))
    missing = sorted({contender.package for contender in everyone if not contender.installed})
    if missing:
        print(f"not installed, and left out: {', '.join(missing)}")
    return [
        contender
        for contender in everyone
        if contender.installed and (arguments.compiled or "compiled" not in contender.name)
    ]


def tower_memory(arguments: argparse.Namespace, name: str) -> int:
    """Bytes beyond weights and inputs that a tower's forward and backward take, gradients included."""
    machine = Machine.here()
    choose_backend("auto", machine.device, machine.dtype)
    small = argparse.Namespace(**{**vars(arguments), "images": 1, "size": "tiny"})
    (contender,) = (contender for contender in towers(arguments) if contender.name == name)
    for chosen in (towers(small)[0], contender):  # what libraries set up once is no tower's
        run = forward_and_backward(chosen.build(machine), machine)
        used = turns.peak_memory(run, machine.device)
    return used
