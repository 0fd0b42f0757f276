"""How patches know where they are: the position embeddings that NaViT compares, and two more.

    learned       NaViT's factorized tables: any coordinates; sum, stack or product
    sinusoidal    fixed waves of the row and of the column: any coordinates; stack
    fourier       waves along learned directions: any coordinates
    rope          axial rotary, inside attention: any coordinates
    learned_2d    Pix2Struct's vector for each (row, column)
    grid          SigLIP 2's square table, resized to each image; ViT's learned 1-D where images have its grid

A pack takes one gather or one product: no loop over images, no host sync.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from navit_clip.errors import ConfigError
from navit_clip.model.coordinates import Coordinates
from navit_clip.model.position_tables import Combination, FactorizedPositions, GridPositions, SquarePositions
from navit_clip.model.position_waves import FourierPositions, RotaryPositions, SinusoidalPositions

Positions = (
    FactorizedPositions
    | SinusoidalPositions
    | FourierPositions
    | SquarePositions
    | GridPositions
    | RotaryPositions
)


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """Where a patch is, and what is made of it."""

    kind: Literal["learned", "sinusoidal", "fourier", "rope", "learned_2d", "grid"] = "learned"
    """learned: NaViT's factorized tables; sinusoidal: fixed waves; fourier: learned waves; rope: rotary;
    learned_2d: Pix2Struct's absolute square table; grid: SigLIP 2's resized square table, and ViT's 1-D."""
    coordinates: Coordinates = "fractional"
    """absolute: patch indices; fractional: shares of the image's own sides; fractional_longer: of the longer
    side. learned_2d is absolute and grid fractional, whether this says so or is left out. Learned tables are
    resized to the side with antialiasing: with fewer patches than entries, they depend on both (NaViT reads
    them at the share alone)."""
    combination: Combination = "sum"
    """What a row's and a column's vector become one by; the kinds that do not have the two leave it."""
    table_side: int = 16
    """Entries per axis of a table, and so the longest side in patches where that is absolute. Fractional
    waves are those of an image of this side. Of absolute waves, only Fourier's have it: for where their
    learning starts, at about a turn over this side."""

    def __post_init__(self):
        if self.table_side < 1:
            raise ConfigError(f"table_side: expected at least 1, found {self.table_side}")
        tableless = self.kind in ("sinusoidal", "rope") and self.coordinates == "absolute"
        if tableless and self.table_side != type(self).table_side:
            raise ConfigError(
                f"table_side: absolute {self.kind} positions are waves of the patch's index, with no side to "
                f"them; leave it at {type(self).table_side}, found {self.table_side}"
            )
        own = {"learned_2d": "absolute", "grid": "fractional"}.get(self.kind)
        if own and self.coordinates not in (own, type(self).coordinates):
            raise ConfigError(
                f"coordinates: {self.kind} positions are {own} by definition, found {self.coordinates}"
            )
        if self.kind == "sinusoidal" and self.combination != "stack":
            raise ConfigError(
                f"combination: the same fixed waves stand for rows and for columns, so their "
                f"{self.combination} would be the same at (i, j) and (j, i); set stack"
            )
        if self.kind not in ("learned", "sinusoidal") and self.combination != type(self).combination:
            raise ConfigError(
                f"combination: {self.kind} positions have no row's and column's vector for a "
                f"{self.combination}; leave it at {type(self).combination}"
            )

    @property
    def reach(self) -> int:
        """The longest side, in patches, that images may have; 0 where there is no end."""
        ends = self.kind == "learned_2d" or (self.kind == "learned" and self.coordinates == "absolute")
        return self.table_side if ends else 0

    def check_width(self, width: int, num_heads: int) -> None:
        """Raises ConfigError where a tower's width cannot be divided as these positions need it."""
        parts = {"sinusoidal": 4, "fourier": 2, "learned": 2 if self.combination == "stack" else 1}
        if width % parts.get(self.kind, 1):
            raise ConfigError(
                f"width: {self.kind} positions need a multiple of {parts[self.kind]}, found {width}"
            )
        if self.kind == "rope" and width // num_heads % 4:
            raise ConfigError(
                "num_heads: rope turns pairs of a head's values by the row and as many by the column, "
                f"so a head needs a multiple of 4 values, found {width // num_heads}"
            )


def make_positions(config: PositionConfig, width: int, num_heads: int) -> Positions:
    """What a config describes, for a tower of that width."""
    side, coordinates = config.table_side, config.coordinates
    if config.kind == "learned":
        return FactorizedPositions(width, side, coordinates, config.combination)
    if config.kind == "sinusoidal":
        return SinusoidalPositions(width, side, coordinates)
    if config.kind == "fourier":
        return FourierPositions(width, side, coordinates)
    if config.kind == "rope":
        return RotaryPositions(width // num_heads, side, coordinates)
    return SquarePositions(width, side) if config.kind == "learned_2d" else GridPositions(width, side)
