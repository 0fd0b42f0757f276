"""Sums and softmax within each sequence of a pack."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor


def segment_index(offsets: Int32[Tensor, " sequences_plus_one"], num_tokens: int) -> Int64[Tensor, " tokens"]:
    """Which sequence each token belongs to. No device sync: the number of tokens is known on the host."""
    counts = offsets.diff()
    sequences = torch.arange(len(counts), device=offsets.device)
    return sequences.repeat_interleave(counts, output_size=num_tokens)


def segment_softmax(
    scores: Float[Tensor, "tokens heads"], index: Int64[Tensor, " tokens"], num_sequences: int
) -> Float[Tensor, "tokens heads"]:
    """Softmax over the tokens of each sequence, for each head on its own."""
    shape = (num_sequences, scores.shape[1])
    # The maximum only keeps exp() in range: softmax does not depend on it, so nor does its gradient.
    highest = scores.new_full(shape, -torch.inf).scatter_reduce(
        0, index[:, None].expand_as(scores), scores.detach(), reduce="amax"
    )
    weights = (scores - highest[index]).exp()
    total = segment_sum(weights, index, num_sequences)
    return weights / total[index]


def segment_sum(
    values: Float[Tensor, "tokens dim"], index: Int64[Tensor, " tokens"], num_sequences: int
) -> Float[Tensor, "sequences dim"]:
    """Sum over the tokens of each sequence."""
    return values.new_zeros(num_sequences, values.shape[1]).index_add(0, index, values)
