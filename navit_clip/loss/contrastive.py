"""A rank's embeddings -> its part of the loss of all ranks' pairs, whatever their numbers.

The matrix of comparisons is never kept: captions travel round the nodes, each rank works through it tile by
tile, and the gradients come with the loss (`sigmoid`, `softmax`). Everything is computed in the embeddings'
own precision, fp32, under autocast too, but for products where TF32 is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from navit_clip.batch import Embeddings
from navit_clip.distributed import World
from navit_clip.loss.comparisons import Comparisons, Sums
from navit_clip.loss.sigmoid import sigmoid_sums
from navit_clip.loss.softmax import softmax_sums


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How images and captions are compared, and which belong together."""

    kind: Literal["sigmoid", "softmax"] = "sigmoid"
    """sigmoid: SigLIP's, each comparison on its own. softmax: CLIP's (InfoNCE), each image among all captions
    and each caption among all images; the logits' bias then plays no part."""
    positives: Literal["pair", "same_caption"] = "pair"
    """pair: an image and its own caption. same_caption: also every equal caption, for data whose captions
    repeat inside a batch, such as class names."""
    products: Literal["fp32", "tf32"] = "fp32"
    """How embeddings and gradients are multiplied. tf32: rounded to ten bits of mantissa, where a GPU has it,
    and summed in fp32: several times as fast, which counts from some dozens of GPUs on."""


def contrastive_loss(
    config: LossConfig, embeddings: Embeddings, counts: list[int], world: World
) -> Float[Tensor, ""]:
    """This rank's part of the loss, scaled so that the *mean* over ranks is the loss of all pairs.

    Data-parallel engines average gradients over ranks, so the sum over this rank's images against all
    captions is multiplied by ranks / pairs: exact for any counts, a rank without pairs included.

    Its gradients are ready when it is, and are freed by the first backward. A loss that is not finite makes
    all of this rank's gradients NaN, so that whoever watches gradients sees it.

    Args:
        config: which loss, and which comparisons are positives.
        embeddings: unit vectors of this rank's pairs, with scale and bias of the logits.
        counts: pairs of every rank, from `World.counts`.
        world: the ranks; all call this together. Captions travel and images stay, unless captions alone
            take a gradient: what travels without one has no gradient to bring home.
    """
    loss: Any = _Streamed.apply(config, counts, world, *embeddings)
    return loss


@contextmanager
def _multiplying_in(products: Literal["fp32", "tf32"]) -> Iterator[None]:
    """Inside, whatever a process has set for its other products on a GPU."""
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "tf32" if products == "tf32" else "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before


class _Streamed(torch.autograd.Function):
    """Forward computes loss and gradients; backward hands the gradients out."""

    @staticmethod
    def forward(
        ctx: Any,
        config: LossConfig,
        counts: list[int],
        world: World,
        image: Tensor,
        text: Tensor,
        identity: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
    ) -> Tensor:
        wants_image, wants_text = ctx.needs_input_grad[3:5]
        images_travel = wants_text and not wants_image
        comparisons = Comparisons(
            rows=text if images_travel else image,
            columns=image if images_travel else text,
            identity=identity,
            same_caption=config.positives == "same_caption",
            logit_scale=logit_scale,
            logit_bias=logit_bias,
            counts=counts,
            starts=[0, *accumulate(counts)],
            world=world,
            wants_gradient=any(ctx.needs_input_grad),
            wants_columns=wants_image and wants_text,
        )
        with torch.autocast(image.device.type, enabled=False), _multiplying_in(config.products):
            sums = (sigmoid_sums if config.kind == "sigmoid" else softmax_sums)(comparisons)
        share = world.size / sum(counts)
        ctx.sums, ctx.images_travel = sums, images_travel
        ctx.share = share * (1 + 0 * sums.loss)
        ctx.like = logit_scale
        return (sums.loss * share).to(image.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor):
        assert ctx.sums is not None, "the loss freed its gradients in an earlier backward"
        sums: Sums = ctx.sums
        ctx.sums = None
        factor = (upstream[0] * ctx.share).to(sums.rows.dtype)
        sides = [sums.rows.mul_(factor), None if sums.columns is None else sums.columns.mul_(factor)]
        image, text = reversed(sides) if ctx.images_travel else sides
        scalars = [(factor * part).to(ctx.like.dtype).view(1) for part in (sums.logit_scale, sums.logit_bias)]
        return None, None, None, image, text, None, *scalars
