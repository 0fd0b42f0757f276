"""Masked attention pooling: one vector per sequence of a pack (the MAP head of Zhai et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from navit_clip.model.blocks import MLP, TransformerConfig, layer_norm
from navit_clip.model.segments import segment_softmax, segment_sum


class AttentionPooling(nn.Module):
    """A learned probe attends to each sequence's tokens; then x + mlp(norm(x)).

    The probe is the same for every sequence, so its query is folded into the key projection: a token's
    score is one product with a [dim, heads] matrix, and keys are never formed. (A key bias would move all
    scores of a head alike, which softmax ignores, so there is none.)
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(torch.empty(1, width))
        # Parameters of this very module, not of submodules: forward reads slices of them, and ZeRO-3
        # gathers a module's own parameters when its forward starts.
        self.query_key_value_weight = nn.Parameter(torch.empty(3 * width, width))
        self.query_key_value_bias = nn.Parameter(torch.zeros(3 * width)) if config.biases else None
        self.output = nn.Linear(width, width, bias=config.biases)
        self.norm = layer_norm(width, config)
        self.mlp = MLP(config)

    def forward(
        self, tokens: Float[Tensor, "tokens dim"], index: Int64[Tensor, " tokens"], num_sequences: int
    ) -> Float[Tensor, "sequences dim"]:
        query_weight, key_weight, value_weight = self.query_key_value_weight.chunk(3)
        query_bias = value_bias = None
        if self.query_key_value_bias is not None:
            query_bias, _, value_bias = self.query_key_value_bias.chunk(3)

        query = F.linear(self.probe, query_weight, query_bias).view(self.num_heads, 1, -1)
        keys = key_weight.view(self.num_heads, -1, tokens.shape[1])
        scoring = (query @ keys).squeeze(1) * query.shape[-1] ** -0.5
        weights = segment_softmax(F.linear(tokens, scoring).float(), index, num_sequences).to(tokens.dtype)

        values = F.linear(tokens, value_weight, value_bias).unflatten(-1, (self.num_heads, -1))
        pooled = segment_sum((values * weights[..., None]).flatten(1), index, num_sequences)
        pooled = self.output(pooled)
        return pooled + self.mlp(self.norm(pooled))
