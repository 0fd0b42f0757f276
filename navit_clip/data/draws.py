"""What chance decides for a sample: its caption and template here, its size, view and kept patches beside.

Pure functions from a config and a source of chance to numbers. That of a sample is made of (seed, epoch, key)
alone, so a sample is drawn alike whatever the number of ranks and workers, and whichever samples came
before. Numbers are always drawn in the same order: caption, template, size, view, drop rate, patches.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.random.bit_generator import ISeedSequence

from navit_clip.errors import ConfigError

_STATE_BYTES = 32
"""Of PCG64: its state and its increment."""
_UNIFORMS = struct.Struct("<8Q")
"""A hash as words; more than a sample has uniform draws, unless it is drawn for again and again."""


class SampleRandom:
    """All chance of a sample in an epoch, by those methods of a numpy generator that are used for it.

    Most samples need a few uniform numbers, which the words of a hash are. To make a generator takes several
    times as long, so there is one only where some other distribution is asked for.
    """

    def __init__(self, seed: int, epoch: int, key: str):
        self._words = (seed, epoch, key)
        self._uniforms = list(_UNIFORMS.unpack(_digest("uniform", *self._words, size=_UNIFORMS.size)))

    def random(self) -> float:
        """Uniform in [0, 1)."""
        return (self._uniforms.pop() >> 11) * 2.0**-53 if self._uniforms else self._generator.random()

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def integers(self, high: int) -> int:
        """Uniform from 0 to high - 1; for small numbers, of which each is then as likely as the next."""
        return int(self.random() * high)

    def normal(self, mean: float, deviation: float) -> float:
        return self._generator.normal(mean, deviation)

    def beta(self, alpha: float, beta: float) -> float:
        return self._generator.beta(alpha, beta)

    def choice(self, number: int, size: int, replace: bool) -> Int64[np.ndarray, " size"]:
        return self._generator.choice(number, size, replace=replace)

    @cached_property
    def _generator(self) -> np.random.Generator:
        mixed: Any = _Mixed(_digest("generator", *self._words, size=_STATE_BYTES))  # numpy's types want more
        return np.random.Generator(np.random.PCG64(mixed))


Random = SampleRandom | np.random.Generator
"""What draws may be made from."""


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
    random: Random,
) -> tuple[str, str]:
    """A caption, by their chances where there are any, and the same put into a template."""
    caption = captions[_draw_number(random, len(captions), chances)]
    template = templates[_draw_number(random, len(templates))]
    return caption, fill_template(template, caption)


def _draw_number(random: Random, count: int, chances: tuple[float, ...] = ()) -> int:
    """A number below `count`; nothing is drawn where there is only one."""
    if count == 1:
        return 0
    if not chances:
        return int(random.integers(count))
    ends = list(accumulate(chances))
    return min(bisect_right(ends, random.random() * ends[-1]), count - 1)


def truncated_normal(
    random: Random, low: float, high: float, mean: float = 0.0, deviation: float = 1.0
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
