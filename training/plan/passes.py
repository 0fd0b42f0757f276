"""What a step reads and writes of gradients and weights: DeepSpeed's copies, the norm, the optimizer.

Read off DeepSpeed 0.19's source: runtime/engine.py (`allreduce_bucket`), runtime/zero/stage_1_and_2.py and
runtime/zero/stage3.py (from `reduce_independent_p_g_buckets_and_remove_grads` to `step`).
"""

from __future__ import annotations

from typing import NamedTuple

from training.engine import BUCKET, EngineConfig
from training.plan.weights import FP32, HALF, Weights

ADAMW = 7
"""Passes over a share: its weights, gradient and moments are read, all but the gradient are written."""


class Passes(NamedTuple):
    """Bytes of a rank in one step."""

    passed: float
    """Read or written where memory lies."""
    fresh: float
    """Written to memory that was just obtained."""

    def plus(self, other: Passes, times: int = 1) -> Passes:
        """Both, the other so many times."""
        return Passes(self.passed + times * other.passed, self.fresh + times * other.fresh)


def passes_of(
    engine: EngineConfig, every: Weights, trained: Weights, num_ranks: int, on_cpu: bool = False
) -> Passes:
    """Of one step, all batches of it; an offloaded optimizer's own steps are the host's and not counted."""
    stage, half = engine.zero_stage, engine.precision == "bf16"
    adamw = ADAMW if engine.offload_optimizer == "none" else 0
    whole = FP32 * trained.total
    if stage == 0:
        stepped = Passes(whole * (1 + 2 + adamw), 0.0)  # the norm, clipping
        return stepped.plus(_summed_whole(whole)) if num_ranks > 1 else stepped
    share = whole / num_ranks
    stepped = _stepped_share(share, adamw, copies_out=stage < 3 or not half)
    if stage < 3:
        if on_cpu and num_ranks > 1:  # gloo gathers weights in memory of its own, and copies them out
            stepped = stepped.plus(Passes(2 * whole, whole))
        return stepped.plus(_bucketed(trained, num_ranks, half), engine.accumulation if stage == 2 else 1)
    return stepped.plus(_scattered(trained, num_ranks, half, on_cpu), engine.accumulation).plus(
        _gathered(every, num_ranks, half, on_cpu), gathers(engine, every)
    )


def gathers(engine: EngineConfig, every: Weights) -> int:
    """How often a step of ZeRO 3 gathers the weights: once a batch where all may stay for both passes."""
    return engine.accumulation * ((1 if every.total <= LIVE else 2) + (engine.accumulation > 1))


LIVE = 1e9
"""Weights that DeepSpeed's ZeRO 3 keeps gathered from their first use to their last: its default."""


def _summed_whole(whole: float) -> Passes:
    """ZeRO 0 joins gradients in one vector, sums that, divides it, and copies it back."""
    return Passes(whole * (1 + 2 + 2), whole)


def _bucketed(trained: Weights, num_ranks: int, half: bool) -> Passes:
    """ZeRO 1 and 2: into a bucket that is obtained for each backward, divided, summed; a share is kept."""
    whole, share = FP32 * trained.total, FP32 * trained.total / num_ranks
    kinds = trained if half else (trained.total,)  # each has a bucket of its own
    bucket = FP32 * sum(min(BUCKET, numbers) for numbers in kinds)
    passes = Passes(whole + (whole - bucket) + 2 * whole, bucket)
    if num_ranks > 1:  # joined once more; what comes of a share is copied back
        passes = passes.plus(Passes(whole + 2 * share, whole))
    if half:  # cast before linear layers' are summed, and cast back
        passes = passes.plus(Passes((FP32 + HALF + FP32) * trained.linear, HALF * trained.linear))
    return passes.plus(Passes(share, share))


def _scattered(trained: Weights, num_ranks: int, half: bool, on_cpu: bool) -> Passes:
    """ZeRO 3: into a bucket that stays, as they are sent; shares are joined, divided, summed, one is kept.

    Gloo, which CPUs use, sums all in a copy and takes a share of that.
    """
    whole, sent = FP32 * trained.total, trained.exchanged(half)
    passes = Passes(whole + sent + sent + 2 * sent + (sent + whole) / num_ranks, sent)
    return passes.plus(Passes(sent + 2 * sent / num_ranks, sent)) if on_cpu else passes


def _gathered(every: Weights, num_ranks: int, half: bool, on_cpu: bool) -> Passes:
    """ZeRO 3: weights received many at a time, and copied to where each lies; one rank has them already.

    Gloo gathers in memory of its own, and copies that to where they are received.
    """
    if num_ranks == 1:
        return Passes(0.0, 0.0)
    sent = every.exchanged(half)
    cast = (HALF + HALF) * every.linear if half else 0.0
    passes = Passes(sent + cast + FP32 * every.total, sent)
    return passes.plus(Passes(sent, sent)) if on_cpu else passes


def _stepped_share(share: float, adamw: int, copies_out: bool) -> Passes:
    """The norm in double precision, a flat copy, clipping, AdamW, and weights out of what it steps on."""
    norm = 1 + 2 + 2
    return Passes(share * (norm + 1 + 2 + adamw + 2 * copies_out), share)
