"""What chance decides for a sample: its caption, template, side length and kept patches.

Pure functions from a config and a generator to numbers. The generator is seeded by (seed, epoch, key)
alone, so a sample is drawn alike whatever the number of ranks and workers, and whichever samples came
before. Numbers are always drawn in the same order: caption, template, side, view,
patches.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from navit_clip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ResolutionConfig:
    """The side r that an image is resized to: area r squared, aspect preserved (NaViT, arXiv 2307.06304).

    Drawn uniformly from whole pixels for each image; equal bounds fix it.
    """

    min_side: int = 64
    """Smallest side, in pixels."""
    max_side: int = 256
    """Largest side, in pixels."""

    def __post_init__(self):
        if self.min_side < 1:
            raise ConfigError(f"min_side: expected at least one pixel, found {self.min_side}")
        if self.max_side < self.min_side:
            raise ConfigError(
                f"max_side: expected at least min_side, which is {self.min_side}, found {self.max_side}"
            )

    def draw_side(self, random: np.random.Generator) -> int:
        """A side in pixels."""
        return int(random.integers(self.min_side, self.max_side, endpoint=True))


@dataclass(frozen=True, kw_only=True)
class DropConfig:
    """Token dropping: an image keeps a random subset of its patches (NaViT)."""

    rate: float = 0.0
    """Share of each image's patches that is dropped; one patch always stays."""

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise ConfigError(f"rate: expected a share in [0, 1), found {self.rate}")

    def num_kept(self, num_patches: int) -> int:
        """How many patches of an image stay."""
        return max(1, round(num_patches * (1 - self.rate)))

    def draw_kept(self, num_patches: int, random: np.random.Generator) -> Int64[np.ndarray, " kept"]:
        """Which patches stay: ascending numbers below `num_patches`."""
        num_kept = self.num_kept(num_patches)
        if num_kept == num_patches:
            return np.arange(num_patches)
        return np.sort(random.choice(num_patches, num_kept, replace=False))


def sample_random(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator of all that is drawn for a sample in an epoch."""
    return np.random.default_rng(seed_of("sample", seed, epoch, key))


def seed_of(*words: str | int) -> int:
    """128 bits that depend on all the words, and are the same on every machine."""
    text = "\0".join(map(str, words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def draw_text(
    captions: tuple[str, ...], templates: tuple[str, ...], random: np.random.Generator
) -> tuple[str, str]:
    """A caption, and the same put into a template."""
    caption = captions[random.integers(len(captions))]
    template = templates[random.integers(len(templates))]
    return caption, fill_template(template, caption)


def fill_template(template: str, caption: str) -> str:
    """Puts a caption where the template has {}."""
    return template.replace("{}", caption)


def check_template(template: str) -> None:
    """Raises ConfigError unless {} stands in the template exactly once."""
    if template.count("{}") != 1:
        raise ConfigError(f"template {template!r}: expected one {{}}, where the caption goes")
