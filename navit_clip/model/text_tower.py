"""The text tower: packed captions -> one vector per caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from navit_clip.batch import Captions
from navit_clip.errors import ConfigError, DataError
from navit_clip.model.blocks import Transformer, TransformerConfig
from navit_clip.model.pooling import AttentionPooling
from navit_clip.model.segments import segment_index


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig(TransformerConfig):
    """The text tower. The defaults are SigLIP's; `causal` with `alignment: left` is CLIP's."""

    vocab_size: int = 32000
    """Rows of the token embedding; at least the tokenizer's vocabulary."""
    context_length: int = 64
    """Tokens of the longest caption, its end token included; longer captions are cut."""
    causal: bool = False
    """Whether a token sees only what comes before it."""
    pooling: Literal["last", "map"] = "last"
    """last: the vector of the end token; map: attention pooling over the caption."""
    alignment: Literal["right", "left"] = "right"
    """Positions of a caption of n tokens: right, context_length - n to context_length - 1, so that the
    packed tower equals SigLIP 2 on captions padded on the left; left, 0 to n - 1."""

    def __post_init__(self):
        TransformerConfig.__post_init__(self)
        for name in ("vocab_size", "context_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")


class TextTower(nn.Module):
    """Token and position embeddings, blocks, pooling, and a linear head to the shared embedding."""

    def __init__(self, config: TextTowerConfig, embedding_dim: int):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.transformer = Transformer(config, causal=config.causal)
        self.pooling = AttentionPooling(config) if config.pooling == "map" else None
        self.head = nn.Linear(config.width, embedding_dim)

    def tokens(self, captions: Captions) -> Float[Tensor, "tokens dim"]:
        """The vector of every token after the last norm, in the pack's order."""
        return self._encode(captions, segment_index(captions.offsets, captions.num_tokens))

    def forward(self, captions: Captions) -> Float[Tensor, "captions embedding_dim"]:
        """One vector per caption, not normalised."""
        caption_index = segment_index(captions.offsets, captions.num_tokens)
        tokens = self._encode(captions, caption_index)
        if self.pooling is None:
            pooled = tokens[captions.offsets[1:] - 1]
        else:
            pooled = self.pooling(tokens, caption_index, len(captions))
        return self.head(pooled)

    def _encode(self, captions: Captions, caption_index: Tensor) -> Float[Tensor, "tokens dim"]:
        if captions.max_length > self.config.context_length:
            raise DataError(
                f"text.context_length: the text tower takes captions of up to {self.config.context_length} "
                f"tokens, found one of {captions.max_length}"
            )
        positions = self._positions(captions, caption_index)
        tokens = self.token_embedding(captions.ids) + self.position_embedding(positions)
        return self.transformer(tokens, captions.offsets, captions.max_length)

    def _positions(self, captions: Captions, caption_index: Tensor) -> Int64[Tensor, " tokens"]:
        token = torch.arange(captions.num_tokens, device=captions.ids.device)
        if self.config.alignment == "left":
            return token - captions.offsets[caption_index]
        return token - captions.offsets[caption_index + 1] + self.config.context_length
