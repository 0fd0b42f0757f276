"""What an image costs the image tower, by the clock."""

from __future__ import annotations

import time
from contextlib import closing
from itertools import islice
from statistics import median

from eval.embed import evaluating, images_per_pack
from eval.image_config import ImageConfig
from eval.image_packs import ImagePacks, Samples
from eval.model import JudgedModel
from eval.views import View
from navit_clip.distributed import World

NUM_PACKS = 2
ROUNDS = 3


def seconds_per_image(
    model: JudgedModel, samples: Samples, world: World, config: ImageConfig, view: View
) -> float:
    """The image tower's time for an image, from the host's memory to a vector there; the same on every rank.

    One rank measures while the others wait: packs as the evaluation has them, spread over the data set and
    prepared beforehand, all embedded once to warm up; the median of three rounds over them.

    Args:
        model: which.
        samples: at least one of them readable.
        world: the ranks; all call this together.
        config: how images are shown and what a forward pass may cost.
        view: what of each picture is shown.
    """
    return world.gather_objects(_measure(model, samples, config, view) if world.is_main else 0.0)[0]


def _measure(model: JudgedModel, samples: Samples, config: ImageConfig, view: View) -> float:
    preparation = model.preparation(config)
    size = images_per_pack(preparation, config)
    num_packs = -(-len(samples) // size)
    spread = [place * num_packs // NUM_PACKS for place in range(min(NUM_PACKS, num_packs))]
    # After those that are spread evenly come the others, in case that nothing in these can be read.
    numbers = list(dict.fromkeys([*spread, *range(num_packs)]))
    # Closed, so that no process decodes beside what is measured.
    with closing(ImagePacks(samples, preparation, view, size, numbers).made(config.num_workers)) as packs:
        readable = list(islice((pack for pack in packs if pack.samples), len(spread)))
    with evaluating(model):
        rounds = [_elapsed(model, [pack.images for pack in readable]) for _ in range(1 + ROUNDS)]
    return median(rounds[1:]) / sum(len(pack.samples) for pack in readable)


def _elapsed(model: JudgedModel, packs: list[object]) -> float:
    start = time.perf_counter()
    for pack in packs:
        model.encode_images(pack).cpu()  # waits for the device, too
    return time.perf_counter() - start
