"""Floating-point operations of the towers, counted on the tokens that there are.

Matrix products and attention; a product with an n x m matrix takes 2nm operations a token. Norms,
activations, softmax and positions are left out, as in PaLM's model FLOP utilisation (2204.02311, appendix B):
what is divided by a machine's matrix-product rate should be matrix products.

Lengths are the tokens of each image or caption of a pack, after dropping. Attention stays inside a sequence,
so it costs the sum of their squares, not the square of their sum.
"""

from __future__ import annotations

from jaxtyping import Int, Real
from torch import Tensor

from navit_clip.model.blocks import TransformerConfig
from navit_clip.model.image_tower import ImageTowerConfig
from navit_clip.model.text_tower import TextTowerConfig


def image_tower_flops(
    config: ImageTowerConfig, lengths: Int[Tensor, " images"], backward: bool = False
) -> float:
    """Operations of the image tower on images of these lengths.

    Args:
        config: the tower.
        lengths: patches kept of each image.
        backward: count the backward pass, too: as much again for the gradient of every layer's input and for
            that of its weights. Pixels take no gradient.
    """
    passes = 3 if backward else 1
    tokens, num_images = float(lengths.sum()), len(lengths)
    embedding = 2 * 3 * config.patch_size**2 * config.width * tokens * (2 if backward else 1)
    pooling = _pooling_flops(config, tokens, num_images)
    return embedding + passes * (_transformer_flops(config, lengths, causal=False) + pooling)


def text_tower_flops(
    config: TextTowerConfig, embedding_dim: int, lengths: Real[Tensor, " captions"], backward: bool = False
) -> float:
    """Operations of the text tower on captions of these lengths.

    Args:
        config: the tower.
        embedding_dim: of the shared embedding.
        lengths: tokens of each caption, or of some in the mean.
        backward: as in `image_tower_flops`. Token embeddings are looked up, which costs no operation.
    """
    pooling = _pooling_flops(config, float(lengths.sum()), len(lengths)) if config.pooling == "map" else 0.0
    head = 2 * config.width * embedding_dim * len(lengths)
    flops = _transformer_flops(config, lengths, config.causal) + pooling + head
    return flops * (3 if backward else 1)


def _transformer_flops(config: TransformerConfig, lengths: Tensor, causal: bool) -> float:
    """Of the blocks. A causal token attends to itself and to those before it: about half of its sequence."""
    lengths = lengths.double()
    attended = float((lengths * (lengths + 1) / 2).sum() if causal else lengths.square().sum())
    weights = 4 * config.width**2 + 2 * config.width * config.mlp_dim
    return config.depth * (2 * weights * float(lengths.sum()) + 4 * config.width * attended)


def _pooling_flops(config: TransformerConfig, tokens: float, num_sequences: int) -> float:
    """A score per head and a value for each token; an output and an MLP for each sequence.

    The probe's query is folded into the keys, so a token's scores cost [width, heads], not [width, width].
    """
    scores_and_values = 2 * (config.width * config.num_heads + config.width**2) * tokens
    return scores_and_values + 2 * (config.width**2 + 2 * config.width * config.mlp_dim) * num_sequences
