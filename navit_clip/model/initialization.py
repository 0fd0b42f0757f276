"""Where the weights start. All of it in one place, as big_vision's SigLIP has it.

Xavier-uniform in attention and pooling, LeCun-like normal elsewhere, small normal position tables; biases
zero. Values depend on torch's global seed and on the order of modules alone.
"""

from __future__ import annotations

from torch import nn

from navit_clip.model.blocks import MLP, Attention
from navit_clip.model.pooling import AttentionPooling
from navit_clip.model.positions import FactorizedPositions, GridPositions


def initialize(model: nn.Module) -> None:
    """Fills every parameter of the towers below `model`; scalars that were set already stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _linear(module)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    for module in model.modules():
        if isinstance(module, Attention):
            for chunk in module.query_key_value.weight.data.chunk(3):
                nn.init.xavier_uniform_(chunk)
            nn.init.xavier_uniform_(module.output.weight)
        elif isinstance(module, MLP):
            nn.init.xavier_uniform_(module.expand.weight)
            nn.init.xavier_uniform_(module.contract.weight)
        elif isinstance(module, AttentionPooling):
            nn.init.xavier_uniform_(module.probe)
            for chunk in module.query_key_value_weight.data.chunk(3):
                nn.init.xavier_uniform_(chunk)
            nn.init.xavier_uniform_(module.output.weight)
        elif isinstance(module, FactorizedPositions):
            width = module.row.shape[1]
            # The sum of the two has the spread of one table of a grid.
            nn.init.normal_(module.row, std=(2 * width) ** -0.5)
            nn.init.normal_(module.column, std=(2 * width) ** -0.5)
        elif isinstance(module, GridPositions):
            nn.init.normal_(module.table, std=module.table.shape[1] ** -0.5)


def _linear(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
