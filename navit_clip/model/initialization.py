"""Where the weights start. All of it in one place, as big_vision's SigLIP has it, but for two scales.

Xavier-uniform in attention and pooling, LeCun-like normal elsewhere; biases zero. The layers that write to
the residual stream start smaller by the root of their number (GPT-2), and the positions of patches as large
as the patches' own vectors: with both, small towers train better from the first steps on
(benchmarks/RESULTS.md). Values depend on torch's global seed and on the order of modules alone.
"""

from __future__ import annotations

import math

from torch import nn

from navit_clip.model.blocks import MLP, Attention, Transformer
from navit_clip.model.pooling import AttentionPooling
from navit_clip.model.position_tables import FactorizedPositions, GridPositions, SquarePositions
from navit_clip.model.position_waves import FourierPositions

POSITION_SPREAD = 0.5
"""Standard deviation of a patch's position vector: about that of its pixels' embedding."""


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
            # What the two are combined to has the spread.
            shares = {"sum": POSITION_SPREAD * 0.5**0.5, "product": POSITION_SPREAD**0.5}
            for table in (module.row, module.column):
                nn.init.normal_(table, std=shares.get(module.combination, POSITION_SPREAD))
        elif isinstance(module, GridPositions | SquarePositions):
            nn.init.normal_(module.table, std=POSITION_SPREAD)
        elif isinstance(module, FourierPositions):
            # About one turn a side.
            nn.init.normal_(module.frequencies, std=2 * math.pi / module.table_side)
    for module in model.modules():
        if isinstance(module, Transformer):
            _shrink_residuals(module)


def _shrink_residuals(transformer: Transformer) -> None:
    """Keeps the residual stream's variance about the same at any depth: each block writes to it twice."""
    share = (2 * len(transformer.blocks)) ** -0.5
    for module in transformer.modules():
        if isinstance(module, Attention):
            module.output.weight.data *= share
        elif isinstance(module, MLP):
            module.contract.weight.data *= share


def _linear(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
