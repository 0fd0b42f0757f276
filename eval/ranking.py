"""The rank of what was sought: scores of queries against targets -> how many targets came before it.

Top-k accuracy and recall@k are both the share of queries whose rank is below k. Ties go to the lower
index, so a metric never depends on a sort's whim, and a constant model scores as its order says.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def best_rank(
    scores: Float[Tensor, "queries targets"], relevant: Bool[Tensor, "queries targets"]
) -> Int64[Tensor, " queries"]:
    """Counts, for each query, the targets ranked before its best relevant one; 0 is the top.

    Args:
        scores: higher is better; finite.
        relevant: which targets answer the query, at least one a query.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    tied = scores == best
    first = (tied & relevant).int().argmax(dim=1, keepdim=True)
    earlier = torch.arange(scores.shape[1], device=scores.device) < first
    return (scores > best).sum(dim=1) + (tied & earlier).sum(dim=1)


def share_within(ranks: Int64[Tensor, " queries"], k: int) -> float:
    """The share of queries whose rank is among the first k, between 0 and 1."""
    return int((ranks < k).sum()) / len(ranks)
