"""The size that an image is trained at: how many patches it may have, and the grid that follows.

NaViT's "resolution r" keeps an image's shape and gives it the area r squared (arXiv 2307.06304). A drawn size
is a side or an area from a range; or it is the image's own; or a number of patches. From it comes the largest
grid of the image's shape (`grid_for`), so the rule for long and thin images is: each side has at least one
patch, and at most `max_grid_side`, to which the image is squeezed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from navit_clip.data.draws import Random, truncated_normal
from navit_clip.data.resize import grid_for, native_grid, tokens_of_side
from navit_clip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ResolutionStage:
    """A range of sides from some point of the training on."""

    from_images: int
    """Images seen, over all ranks, when the stage begins."""
    min_side: int
    """Smallest side, in pixels."""
    max_side: int
    """Largest side, in pixels."""

    def __post_init__(self):
        if self.from_images < 1:
            raise ConfigError(f"from_images: expected at least 1, found {self.from_images}")
        _check_range(self.min_side, self.max_side)


@dataclass(frozen=True, kw_only=True)
class ResolutionConfig:
    """How large images are."""

    kind: Literal["drawn", "native", "patches"] = "drawn"
    """drawn: from the range, for each image; native: each image's own size, and no more than max_side;
    patches: as many as one of `patches`, the image scaled up or down to it (Pix2Struct, NaFlex)."""
    min_side: int = 64
    """Drawn: the smallest side, in pixels: that of a square of the image's area."""
    max_side: int = 256
    """Drawn and native: the largest side. Equal bounds fix it."""
    measure: Literal["side", "area"] = "side"
    """Drawn: what is distributed over the range."""
    distribution: Literal["uniform", "normal"] = "uniform"
    """Drawn: uniform, or a normal distribution cut off at the ends of the range, which are -1 and 1 to it."""
    mean: float = 0.0
    """Normal: its mean, in [-1, 1]. NaViT finds -0.5 the best."""
    deviation: float = 1.0
    """Normal: its standard deviation, in half ranges."""
    stages: list[ResolutionStage] = field(default_factory=list)
    """Drawn: other ranges, from some number of images seen on, in order; needs data.images_per_epoch."""
    patches: list[int] = field(default_factory=list)
    """Patches: the numbers to choose from, each as likely."""
    same_in_batch: bool = False
    """Patches: a batch holds images of one number alone, as SigLIP 2's NaFlex trains; each number has a
    waiting line of its own."""
    shape: Literal["own", "square"] = "own"
    """own: the image's aspect ratio; square: distorted to a square, as ViT has it."""
    upscale: bool = True
    """Whether an image may become larger than it is; where not, only to complete its last patches."""
    max_grid_side: int = 0
    """Longest side of a grid, in patches: a longer image is squeezed to it. 0: none. What reads a table of
    absolute positions needs it."""

    def __post_init__(self):
        for name, kinds in _USED_BY.items():
            default = [] if name == "stages" else getattr(type(self), name)
            if self.kind not in kinds and getattr(self, name) != default:
                raise ConfigError(f"{name}: only kind {' or '.join(kinds)} has it, found kind {self.kind}")
        _check_range(1 if self.kind == "native" else self.min_side, self.max_side)
        if not -1 <= self.mean <= 1:
            raise ConfigError(f"mean: expected in [-1, 1], the range that it lies in, found {self.mean}")
        if not 0.01 <= self.deviation <= 10:  # beyond, it is the mean or uniform, and slow to draw
            raise ConfigError(f"deviation: expected in [0.01, 10], found {self.deviation}")
        if self.max_grid_side < 0:
            raise ConfigError(f"max_grid_side: expected at least 0, found {self.max_grid_side}")
        if min(self.patches, default=1) < 1 or len(set(self.patches)) < len(self.patches):
            raise ConfigError(f"patches: expected different numbers of at least 1, found {self.patches}")
        if (self.kind == "patches") != bool(self.patches):
            raise ConfigError(
                f"patches: expected one or more numbers for kind patches and none for others, "
                f"found {self.patches} for {self.kind}"
            )
        starts = [0, *(stage.from_images for stage in self.stages)]
        if sorted(set(starts)) != starts:
            raise ConfigError(f"stages: expected each from_images to be above the last, found {starts[1:]}")
        if self.distribution == "uniform" and (self.mean, self.deviation) != (0.0, 1.0):
            raise ConfigError("distribution: mean and deviation are of the normal one, found uniform")

    def largest(self, patch_size: int) -> int:
        """Most patches that an image may have before any is dropped."""
        if self.kind == "patches":
            return self._possible(max(self.patches))
        side = max([self.max_side, *(stage.max_side for stage in self.stages)])
        return self._possible(tokens_of_side(side, patch_size))

    def smallest(self, patch_size: int) -> int:
        """Fewest patches that a drawn size asks for."""
        if self.kind == "patches":
            return self._possible(min(self.patches))
        if self.kind == "native":
            return 1
        side = min([self.min_side, *(stage.min_side for stage in self.stages)])
        return self._possible(tokens_of_side(side, patch_size))

    def longest_side(self, patch_size: int) -> int:
        """Most patches that a grid may have along a side."""
        largest = self.largest(patch_size)
        side = math.isqrt(largest) if self.shape == "square" else largest
        return min(side, self.max_grid_side or side)

    def draw_tokens(self, random: Random, images_seen: float, patch_size: int) -> int:
        """The number of patches that an image of this draw may have."""
        if self.kind == "patches":
            return self.patches[random.integers(len(self.patches))]
        if self.kind == "native":
            return tokens_of_side(self.max_side, patch_size)
        low, high = self.sides(images_seen)
        share = self._draw_share(random)
        # Whole pixels, each as likely as the next where the distribution is uniform.
        if self.measure == "side":
            side = math.floor(low + share * (high + 1 - low))
        else:
            side = math.floor((low**2 + share * ((high + 1) ** 2 - low**2)) ** 0.5)
        return tokens_of_side(min(side, high), patch_size)

    def sides(self, images_seen: float) -> tuple[int, int]:
        """The range of sides after so many images."""
        for stage in reversed(self.stages):
            if stage.from_images <= images_seen:
                return stage.min_side, stage.max_side
        return self.min_side, self.max_side

    def grid(self, height: int, width: int, patch_size: int, num_tokens: int) -> tuple[int, int]:
        """Rows and columns of an image of this many pixels that may have `num_tokens` patches."""
        own = native_grid(height, width, patch_size)
        grows = self.upscale and self.kind != "native"
        if not grows:
            num_tokens = min(num_tokens, math.prod(own))
        if self.shape == "own":
            return grid_for(height, width, patch_size, num_tokens, self.max_grid_side)
        side = min(math.isqrt(num_tokens), self.max_grid_side or num_tokens)
        side = side if grows else min(side, *own)
        return side, side

    def _possible(self, num_tokens: int) -> int:
        """What of a number of patches the shape and the longest side leave."""
        if self.max_grid_side:
            num_tokens = min(num_tokens, self.max_grid_side**2)
        return math.isqrt(num_tokens) ** 2 if self.shape == "square" else num_tokens

    def _draw_share(self, random: Random) -> float:
        """A place in the range, from 0 to 1."""
        if self.distribution == "uniform":
            return random.random()
        return (truncated_normal(random, -1.0, 1.0, self.mean, self.deviation) + 1) / 2


_USED_BY = {
    "min_side": ("drawn",),
    "max_side": ("drawn", "native"),
    "measure": ("drawn",),
    "distribution": ("drawn",),
    "stages": ("drawn",),
    "same_in_batch": ("patches",),
}
"""The kinds that have a setting; in others it stays at its default, where it would do nothing."""


def _check_range(min_side: int, max_side: int) -> None:
    if min_side < 1:
        raise ConfigError(f"min_side: expected at least one pixel, found {min_side}")
    if max_side < min_side:
        raise ConfigError(f"max_side: expected at least min_side, which is {min_side}, found {max_side}")
