"""The gradient of one step: of the contrastive loss of all batches of all ranks together.

With several batches a step, each pair is contrasted with the pairs of all of them: the gradient is that of
one batch as large as they are together, not the mean of small ones' (the idea is GradCache's, 2101.06983).
All batches are embedded without a graph, the loss gives the gradient of the embeddings once, and each batch
is embedded again, with its graph, to take its share of it. The towers draw nothing at random, so that the
second embeddings are the first. It costs one more forward of each batch, and the memory of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from navit_clip.batch import Batch, Embeddings
from navit_clip.distributed import World
from navit_clip.loss import LossConfig, contrastive_loss
from training.engine import Engine


class Contrast(NamedTuple):
    """What a step's loss was, still on the device."""

    loss: Tensor
    """This rank's part; the mean over ranks is the loss of all pairs."""
    logit_scale: Tensor
    logit_bias: Tensor


def accumulate_gradient(
    engine: Engine, batches: Sequence[Batch], counts: list[int], config: LossConfig, world: World
) -> Contrast:
    """Leaves the gradient of the loss of all pairs in the engine; all ranks call this together.

    Args:
        engine: holds the model; as many batches make a step as its config says.
        batches: this rank's, on its device.
        counts: pairs of every rank, over all of its batches.
        config: which loss.
        world: the ranks.
    """
    if len(batches) == 1:
        embeddings = engine.embed(batches[0])
        loss = contrastive_loss(config, embeddings, counts, world)
        engine.backward(loss)
        return Contrast(loss.detach(), embeddings.logit_scale.detach(), embeddings.logit_bias.detach())

    with torch.no_grad():
        parts = [engine.embed(batch) for batch in batches]
    joined = Embeddings(
        image=torch.cat([part.image for part in parts]),
        text=torch.cat([part.text for part in parts]),
        identity=torch.cat([part.identity for part in parts]),
        logit_scale=parts[0].logit_scale,
        logit_bias=parts[0].logit_bias,
    )
    leaves = [part.requires_grad_() for part in (joined.image, joined.text, *joined[3:])]
    loss = contrastive_loss(config, joined, counts, world)
    image, text, scale, bias = torch.autograd.grad(loss, leaves)

    sizes = [len(part.image) for part in parts]
    # Every batch takes an equal share of what all have in common, so that each backward reaches every weight.
    shared = [gradient / len(batches) for gradient in (scale, bias)]
    for batch, *own in zip(batches, image.split(sizes), text.split(sizes), strict=True):
        engine.backward(_with_gradient(engine.embed(batch), [*own, *shared]))
    return Contrast(loss.detach(), joined.logit_scale.detach(), joined.logit_bias.detach())


def _with_gradient(embeddings: Embeddings, gradients: Sequence[Tensor]) -> Tensor:
    """A number whose derivative by each embedding, and by scale and bias, is the gradient given."""
    image, text, _, scale, bias = embeddings
    values = (image, text, scale, bias)
    return torch.stack([(value * part).sum() for value, part in zip(values, gradients, strict=True)]).sum()
