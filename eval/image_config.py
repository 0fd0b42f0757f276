"""How an evaluation shows images to a model, and what a forward pass may cost."""

from __future__ import annotations

from dataclasses import dataclass

from navit_clip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Tokens for each image, tokens for each forward pass, processes to decode."""

    tokens_per_image: int = 256
    """Patches of an image at most; each is resized, up or down, to come as near as its shape allows. Models
    that take every image at one size take theirs."""
    upscale: bool = True
    """Whether images with fewer patches than that are scaled up to it."""
    keep: float = 1.0
    """Share of an image's patches that are shown, drawn at random; resizing to fewer tokens does better."""
    token_budget: int = 16384
    """Tokens of one forward pass at most."""
    num_workers: int = 2
    """Processes that decode and cut images, on each rank; 0 does it in the main process."""

    def __post_init__(self):
        for name, least in (("tokens_per_image", 1), ("token_budget", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if not 0 < self.keep <= 1:
            raise ConfigError(f"keep: expected a share above 0 and up to 1, found {self.keep}")
        if self.token_budget < self.tokens_per_image:
            raise ConfigError(
                f"token_budget: expected at least tokens_per_image = {self.tokens_per_image}, "
                f"found {self.token_budget}"
            )
