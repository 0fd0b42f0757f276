"""The sigmoid loss against a dense float64 reference, on one rank and on several with uneven counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from navit_clip.batch import Embeddings
from navit_clip.distributed import World
from navit_clip.loss import LossConfig, sigmoid_loss
from tests.ranks import on_ranks

DIM = 16
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def random_embeddings(num_pairs: int, seed: int = 0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        torch.nn.functional.normalize(torch.randn(num_pairs, DIM, generator=generator), dim=1) for _ in "it"
    )
    identity = torch.arange(num_pairs) % 7
    return Embeddings(image, text, identity, torch.tensor([8.0]), torch.tensor([-6.0]))


def dense_reference(embeddings: Embeddings, positives: str) -> tuple[float, list[np.ndarray]]:
    """Algorithm 1 of SigLIP in float64, with all gradients."""
    image, text, scale, bias = (
        part.detach().double().requires_grad_()
        for part in (embeddings.image, embeddings.text, embeddings.logit_scale, embeddings.logit_bias)
    )
    same = embeddings.identity[:, None] == embeddings.identity
    labels = 2 * (torch.eye(len(image)) if positives == "pair" else same.double()) - 1
    loss = -torch.nn.functional.logsigmoid(labels * (scale * image @ text.T + bias)).sum() / len(image)
    return loss.item(), [g.numpy() for g in torch.autograd.grad(loss, [image, text, scale, bias])]


def loss_and_gradients(world: World, counts: list[int], positives) -> tuple[float, list[np.ndarray]]:
    """What one rank computes for its slice of the pairs."""
    everything = random_embeddings(sum(counts))
    own = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
    image, text, identity = (part[own].clone() for part in everything[:3])
    leaves = [image, text, everything.logit_scale, everything.logit_bias]
    for leaf in leaves:
        leaf.requires_grad_()
    embeddings = Embeddings(image, text, identity, *leaves[2:])
    loss = sigmoid_loss(LossConfig(positives=positives), embeddings, world.counts(len(image)), world)
    loss.backward()
    return loss.item(), [leaf.grad.numpy() for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("positives", ["pair", "same_caption"])
@pytest.mark.parametrize("counts", [[20], [1], [5, 12], [5, 0, 17]], ids=str)
def test_loss_and_gradients_equal_the_dense_reference(counts, positives):
    if len(counts) == 1:
        results = [loss_and_gradients(ALONE, counts, positives)]
    else:
        results = on_ranks(len(counts), loss_and_gradients, counts, positives)
    loss, (image, text, scale, bias) = dense_reference(random_embeddings(sum(counts)), positives)
    ranks = len(counts)
    # An engine averages over ranks: the mean of the losses and of shared gradients is the whole batch's.
    assert np.mean([rank_loss for rank_loss, _ in results]) == pytest.approx(loss, rel=1e-6)
    for index, expected in ((0, image), (1, text)):
        found = np.concatenate([rank_gradients[index] for _, rank_gradients in results]) / ranks
        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
    for index, expected in ((2, scale), (3, bias)):
        found = np.mean([rank_gradients[index] for _, rank_gradients in results], axis=0)
        np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_the_loss_at_initialisation_is_the_paper_s():
    """Orthogonal embeddings at t' = log 10, b = -10: -log sigmoid(-10) + (n - 1) * 4.54e-5."""
    pairs = 8
    image, text = torch.eye(2 * pairs)[:pairs], torch.eye(2 * pairs)[pairs:]
    embeddings = Embeddings(image, text, torch.arange(pairs), torch.tensor([10.0]), torch.tensor([-10.0]))
    expected = math.log1p(math.exp(10)) + (pairs - 1) * math.log1p(math.exp(-10))
    assert sigmoid_loss(LossConfig(), embeddings, [pairs], ALONE).item() == pytest.approx(expected, rel=1e-6)
