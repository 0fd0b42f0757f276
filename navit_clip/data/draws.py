"""What chance decides for a sample: its caption and template here, its size, view and kept patches beside.

Pure functions from a config and a generator to numbers. The generator is seeded by (seed, epoch, key)
alone, so a sample is drawn alike whatever the number of ranks and workers, and whichever samples came
before. Numbers are always drawn in the same order: caption, template, size, view, drop rate, patches.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from navit_clip.errors import ConfigError

_STATE_BYTES = 32
"""Of PCG64: its state and its increment."""


def sample_random(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator of all that is drawn for a sample in an epoch."""
    digest = _digest("sample", seed, epoch, key, size=_STATE_BYTES)
    mixed: Any = _Mixed(digest)  # numpy's types leave out that it takes any ISeedSequence
    return np.random.Generator(np.random.PCG64(mixed))


def seed_of(*words: str | int) -> int:
    """128 bits that depend on all the words, and are the same on every machine."""
    return int.from_bytes(_digest(*words, size=16), "little")


class _Mixed(ISeedSequence):
    """Bits that a hash has mixed. numpy would mix them again, which takes ten times as long as the hash.

    Args:
        state: as many as the generator asks for.
    """

    def __init__(self, state: bytes):
        self._state = state

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.frombuffer(self._state, dtype, n_words)


def _digest(*words: str | int, size: int) -> bytes:
    return hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=size).digest()


def draw_text(
    captions: tuple[str, ...],
    chances: tuple[float, ...],
    templates: tuple[str, ...],
    random: np.random.Generator,
) -> tuple[str, str]:
    """A caption, by their chances where there are any, and the same put into a template."""
    caption = captions[_draw_number(random, len(captions), chances)]
    template = templates[_draw_number(random, len(templates))]
    return caption, fill_template(template, caption)


def _draw_number(random: np.random.Generator, count: int, chances: tuple[float, ...] = ()) -> int:
    """A number below `count`; nothing is drawn where there is only one."""
    if count == 1:
        return 0
    if not chances:
        return int(random.integers(count))
    ends = list(accumulate(chances))
    return min(bisect_right(ends, random.random() * ends[-1]), count - 1)


def truncated_normal(
    random: np.random.Generator, low: float, high: float, mean: float = 0.0, deviation: float = 1.0
) -> float:
    """A normal variable given that it lies in [low, high], which should be likely: others are drawn again."""
    while True:
        drawn = random.normal(mean, deviation)
        if low <= drawn <= high:
            return drawn


def fill_template(template: str, caption: str) -> str:
    """Puts a caption where the template has {}."""
    return template.replace("{}", caption)


def check_template(template: str, key: str) -> None:
    """Raises ConfigError, in the name of a setting, unless {} stands in the template exactly once."""
    if template.count("{}") != 1:
        raise ConfigError(f"{key}: expected one {{}}, where the caption goes, found {template!r}")
