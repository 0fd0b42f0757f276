"""The transformer that both towers are made of: pre-norm blocks over a pack of sequences.

A block is position-wise but for its attention, so a pack passes through it as one [tokens, dim] matrix.
NaViT's choices (§2.1 of the paper, after ViT-22B) are two settings: `qk_norm` and `biases: false`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from navit_clip.errors import ConfigError
from navit_clip.model.attention import arrange, packed_attention
from navit_clip.model.position_waves import rotate


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The size of a tower."""

    width: int = 384
    """Values per token between blocks."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 6
    """Attention heads per block; divides the width."""
    mlp_dim: int = 1536
    """Values per token inside the MLP."""
    qk_norm: bool = False
    """Normalise queries and keys per head: steadier at scale; SigLIP 2's architecture lacks it."""
    biases: bool = False
    """Whether norms and the linear layers inside blocks have biases; NaViT has none."""
    norm_eps: float = 1e-6
    """Added to the variance in every layer norm."""
    checkpoint_blocks: bool = False
    """Keep only the blocks' inputs for the backward pass: less memory, a third more work."""

    def __post_init__(self):
        for name in ("width", "depth", "num_heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.norm_eps <= 0:
            raise ConfigError(f"norm_eps: expected above 0, found {self.norm_eps}")
        if self.width % self.num_heads:
            raise ConfigError(
                f"num_heads: expected a divisor of width, which is {self.width}, found {self.num_heads}"
            )


class Transformer(nn.Module):
    """`depth` blocks and a final norm."""

    def __init__(self, config: TransformerConfig, causal: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, causal) for _ in range(config.depth))
        self.norm = layer_norm(config.width, config)
        self.checkpoint_blocks = config.checkpoint_blocks

    def compile_blocks(self) -> None:
        """Has torch.compile fuse what blocks do to each token by itself, for any number of tokens at once.

        Attention stays the kernel that it is: where sequences begin and end is data, and no part of a graph,
        so that no pack makes anything compile again.
        """
        attend: Any = torch.compiler.disable(packed_attention)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.attend = attend
            block.forward = torch.compile(block.forward, dynamic=True)

    def forward(
        self,
        tokens: Float[Tensor, "tokens dim"],
        offsets: Int32[Tensor, " sequences_plus_one"],
        max_length: int,
        turns: Float[Tensor, "tokens 2 pairs"] | None = None,
    ) -> Float[Tensor, "tokens dim"]:
        """Tokens after the last norm; `turns` are what rotary positions turn queries and keys by."""
        arrangement = arrange(offsets)
        if arrangement is not None:
            tokens, offsets = tokens[arrangement.order], arrangement.offsets
            turns = None if turns is None else turns[arrangement.order]
        for block in self.blocks:
            if self.checkpoint_blocks and self.training:
                tokens = checkpoint(block, tokens, offsets, max_length, turns, use_reentrant=False)
            else:
                tokens = block(tokens, offsets, max_length, turns)
        tokens = self.norm(tokens)
        return tokens if arrangement is None else tokens[arrangement.inverse]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig, causal: bool):
        super().__init__()
        self.attention_norm = layer_norm(config.width, config)
        self.attention = Attention(config, causal)
        self.mlp_norm = layer_norm(config.width, config)
        self.mlp = MLP(config)

    def forward(self, tokens, offsets, max_length, turns):
        tokens = tokens + self.attention(self.attention_norm(tokens), offsets, max_length, turns)
        return tokens + self.mlp(self.mlp_norm(tokens))


class Attention(nn.Module):
    """Multi-head self-attention, kept inside each sequence of the pack."""

    def __init__(self, config: TransformerConfig, causal: bool):
        super().__init__()
        head_dim = config.width // config.num_heads
        self.num_heads = config.num_heads
        self.causal = causal
        self.attend = packed_attention
        self.query_key_value = Linear(config.width, 3 * config.width, bias=config.biases)
        self.query_norm = layer_norm(head_dim, config) if config.qk_norm else nn.Identity()
        self.key_norm = layer_norm(head_dim, config) if config.qk_norm else nn.Identity()
        self.output = Linear(config.width, config.width, bias=config.biases)

    def forward(self, tokens, offsets, max_length, turns):
        heads = self.query_key_value(tokens).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.unbind(dim=1)
        query, key = self.query_norm(query), self.key_norm(key)
        if turns is not None:
            query, key = rotate(query, turns), rotate(key, turns)
        # Autocast computes norms in fp32, and turns are; attention kernels want one dtype.
        query, key = query.type_as(value), key.type_as(value)
        attended = self.attend(query, key, value, offsets, max_length, self.causal)
        return self.output(attended.flatten(1))


class MLP(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them, as SigLIP has it."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.expand = Linear(config.width, config.mlp_dim, bias=config.biases)
        self.contract = Linear(config.mlp_dim, config.width, bias=config.biases)

    def forward(self, tokens: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        return self.contract(gelu(self.expand(tokens)))


class Linear(nn.Linear):
    """A linear layer whose bias torch.compile adds, on a CPU, in the loop that comes after the product.

    The kernel that takes a bias writes it to every row first, and then reads and writes all of them again.
    """

    def forward(self, input: Float[Tensor, "tokens inputs"]) -> Float[Tensor, "tokens outputs"]:
        if torch.compiler.is_compiling() and self.bias is not None and input.device.type == "cpu":
            products = F.linear(input, self.weight)
            return products + self.bias.type_as(products)
        return super().forward(input)


def gelu(values: Tensor) -> Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the tanh approximation of x Phi(x), of each value.

    1 + tanh(z) is 2 sigmoid(2z), which a fused loop has in half of tanh's time on a CPU; kernels run one by
    one would pass over memory six times for it.
    """
    if torch.compiler.is_compiling():
        return values * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (values + 0.044715 * values**3))
    return F.gelu(values, approximate="tanh")


def layer_norm(width: int, config: TransformerConfig) -> nn.LayerNorm:
    """Layer norm over the last axis, with a bias only where the config gives its layers one."""
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.biases)
