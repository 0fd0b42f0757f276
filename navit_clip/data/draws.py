"""What chance decides for a sample: its caption and template here, its size, view and kept patches beside.

Pure functions from a config and a generator to numbers. The generator is seeded by (seed, epoch, key)
alone, so a sample is drawn alike whatever the number of ranks and workers, and whichever samples came
before. Numbers are always drawn in the same order: caption, template, size, view, drop rate, patches.
"""

from __future__ import annotations

import hashlib

import numpy as np

from navit_clip.errors import ConfigError


def sample_random(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator of all that is drawn for a sample in an epoch."""
    # What default_rng makes, in half the time.
    return np.random.Generator(np.random.PCG64(seed_of("sample", seed, epoch, key)))


def seed_of(*words: str | int) -> int:
    """128 bits that depend on all the words, and are the same on every machine."""
    text = "\0".join(map(str, words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def draw_text(
    captions: tuple[str, ...],
    chances: tuple[float, ...],
    templates: tuple[str, ...],
    random: np.random.Generator,
) -> tuple[str, str]:
    """A caption, by their chances where there are any, and the same put into a template."""
    number = random.choice(len(captions), p=chances) if chances else random.integers(len(captions))
    caption = captions[number]
    template = templates[random.integers(len(templates))]
    return caption, fill_template(template, caption)


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
