"""The contrastive losses against dense float64 references, on one rank and on several with uneven counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from navit_clip.batch import Embeddings
from navit_clip.distributed import World
from navit_clip.loss import LossConfig, contrastive_loss
from navit_clip.loss.comparisons import TILE, Comparisons, Sums
from navit_clip.loss.sigmoid import sigmoid_sums
from tests.ranks import on_ranks

DIM = 16
ALONE = World(rank=0, size=1, device=torch.device("cpu"))
SETTINGS = [
    LossConfig(kind=kind, positives=positives)
    for kind, positives in product(("sigmoid", "softmax"), ("pair", "same_caption"))
]
NAMES = ("image", "text", "logit_scale", "logit_bias")


class Outcome(NamedTuple):
    """A loss, and its gradients by name; none for what takes no gradient."""

    loss: float
    gradients: dict[str, np.ndarray]


def random_embeddings(num_pairs: int, dtype: torch.dtype = torch.float32) -> Embeddings:
    """Unit vectors; every seventh caption is the same."""
    generator = torch.Generator().manual_seed(num_pairs)
    image, text = (F.normalize(torch.randn(num_pairs, DIM, generator=generator), dim=1) for _ in "it")
    identity = torch.arange(num_pairs) % 7
    scale, bias = torch.tensor([8.0]), torch.tensor([-6.0])
    return Embeddings(image.to(dtype), text.to(dtype), identity, scale.to(dtype), bias.to(dtype))


def dense_reference(embeddings: Embeddings, config: LossConfig, wanted=NAMES) -> Outcome:
    """The papers' formulas in float64, on the whole matrix."""
    leaves = {name: getattr(embeddings, name).detach().double().requires_grad_() for name in NAMES}
    image, text, scale, bias = leaves.values()
    logits = scale * image @ text.T + bias
    positive = torch.eye(len(image), dtype=torch.bool)
    if config.positives == "same_caption":
        positive = embeddings.identity[:, None] == embeddings.identity
    if config.kind == "sigmoid":
        loss = -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(image)
    else:
        target = positive.double() / positive.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    gradients = torch.autograd.grad(loss, [leaves[name] for name in wanted])
    return Outcome(loss.item(), {name: g.numpy() for name, g in zip(wanted, gradients, strict=True)})


def outcome(
    world: World, config: LossConfig, counts: list[int], tile: int = TILE["cpu"], wanted=NAMES
) -> Outcome:
    """What one rank computes for its slice of the pairs."""
    everything = random_embeddings(sum(counts))
    own = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
    parts = [part[own].clone() for part in everything[:3]]
    embeddings = Embeddings(*parts, everything.logit_scale, everything.logit_bias)
    for name in wanted:
        getattr(embeddings, name).requires_grad_()
    usual, TILE["cpu"] = TILE["cpu"], tile
    loss = contrastive_loss(config, embeddings, world.counts(counts[world.rank]), world)
    loss.backward()
    TILE["cpu"] = usual
    found = {name: getattr(embeddings, name).grad for name in NAMES}
    return Outcome(loss.item(), {name: grad.numpy() for name, grad in found.items() if grad is not None})


def outcomes(world: World, cases: list[tuple], nodes: Sequence[int] = (1,)) -> list[list[Outcome]]:
    """Of each case, on as many nodes of ranks as are asked for."""
    worlds = [world.in_nodes_of(world.size // number) for number in nodes]
    return [[outcome(world, *case) for case in cases] for world in worlds]


def assert_is(expected: Outcome, by_rank: list[Outcome]) -> None:
    """An engine averages over ranks: the mean of losses and of shared gradients is the whole batch's."""
    ranks = len(by_rank)
    assert np.mean([result.loss for result in by_rank]) == pytest.approx(expected.loss, rel=1e-6, abs=1e-7)
    for name, reference in expected.gradients.items():
        shares = [result.gradients[name] for result in by_rank]
        found = (np.concatenate(shares) if name in ("image", "text") else np.sum(shares, axis=0)) / ranks
        error = np.linalg.norm(found - reference)
        # A softmax does not see the bias, and of one pair it sees nothing at all.
        assert error <= 1e-6 * np.linalg.norm(reference) + 1e-8, name
    assert all(result.gradients.keys() == expected.gradients.keys() for result in by_rank)


@pytest.mark.parametrize(
    ("all_counts", "nodes"),
    [
        ([[25], [1]], [1]),
        ([[5, 12], [0, 9], [1, 0]], [1, 2]),
        ([[5, 0, 17], [7, 7, 7]], [1, 3]),
        ([[5, 0, 17, 3], [0, 0, 0, 1]], [1, 2, 4]),
        ([[3, 1, 0, 9, 2, 5], [0, 0, 4, 0, 1, 0]], [2, 3]),
    ],
    ids=["1 rank", "2 ranks", "3 ranks", "4 ranks", "6 ranks"],
)
def test_loss_and_gradients_equal_the_dense_reference(all_counts, nodes):
    tiles = (TILE["cpu"], 4)
    cases: list[Any] = list(product(SETTINGS, all_counts, tiles))
    cases += [
        (config, all_counts[0], 4, wanted) for config in SETTINGS for wanted in (NAMES[0::2], NAMES[1::2])
    ]
    ranks = len(all_counts[0])
    results = [outcomes(ALONE, cases)] if ranks == 1 else on_ranks(ranks, outcomes, cases, nodes)
    for of_nodes in zip(*results, strict=True):
        for case, *by_rank in zip(cases, *of_nodes, strict=True):
            config, counts, *rest = case
            wanted = rest[1] if len(rest) > 1 else NAMES
            assert_is(dense_reference(random_embeddings(sum(counts)), config, wanted), by_rank)


def partners(world: World) -> tuple[dict[int, int], list[int]]:
    """Whom a rank sends rows over the network, with how many numbers in all; and who is on its node."""
    sent: dict[int, int] = {}

    def counted(operation: Any, tensor: torch.Tensor, peer: int) -> dist.P2POp:
        if operation is dist.isend:
            sent[peer] = sent.get(peer, 0) + tensor.numel()
        return point_to_point(operation, tensor, peer)

    point_to_point, dist.P2POp = dist.P2POp, counted  # type: ignore[misc]
    pairs = world.in_nodes_of(2)
    outcome(pairs, LossConfig(), [3] * world.size)
    return sent, dist.get_process_group_ranks(pairs.node)


def test_captions_go_from_node_to_node_by_the_rank_in_the_same_place():
    for rank, (sent, on_node) in enumerate(on_ranks(6, partners)):
        columns = 3 * DIM
        # All captions but the last node's go on, and what was made of them, which then goes home.
        assert sent == {(rank + 2) % 6: 2 * columns + 3 * columns}
        assert on_node == [rank - rank % 2, rank - rank % 2 + 1]


def open_clip_losses() -> ModuleType:
    """That module of open_clip alone: the models beside it take every rank seconds to import."""
    package = find_spec("open_clip")
    assert package is not None
    assert package.submodule_search_locations
    spec = spec_from_file_location("open_clip_loss", f"{package.submodule_search_locations[0]}/loss.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_clip_outcome(world: World, kind: str, num_pairs: int) -> Outcome:
    """open_clip's losses for the same slice; `gather` exchanges by one all-gather with gradient."""
    theirs = open_clip_losses()
    everything = random_embeddings(num_pairs * world.size)
    own = slice(num_pairs * world.rank, num_pairs * (world.rank + 1))
    image, text, scale, bias = leaves = [
        part.clone().requires_grad_()
        for part in (
            everything.image[own],
            everything.text[own],
            everything.logit_scale,
            everything.logit_bias,
        )
    ]
    settings = {"rank": world.rank, "world_size": world.size}
    if kind == "sigmoid":
        loss = theirs.SigLipLoss(**settings, dist_impl="gather")(image, text, scale, bias)
    else:
        loss = theirs.ClipLoss(**settings, local_loss=True, gather_with_grad=True)(image, text, scale)
    loss.backward()
    gradients = [torch.zeros(1) if leaf.grad is None else leaf.grad for leaf in leaves]
    return Outcome(loss.item(), {name: g.numpy() for name, g in zip(NAMES, gradients, strict=True)})


def beside_open_clip(world: World, num_pairs: int) -> list[tuple[Outcome, Outcome]]:
    counts = [num_pairs] * world.size
    return [
        (outcome(world, LossConfig(kind=kind), counts, 4), open_clip_outcome(world, kind, num_pairs))
        for kind in ("sigmoid", "softmax")
    ]


def test_ranks_with_equal_counts_agree_with_open_clip():
    by_rank = on_ranks(3, beside_open_clip, 6)
    for kind in range(2):
        ours, theirs = ([pairs[kind][side] for pairs in by_rank] for side in range(2))
        # Ranks share the work in other ways, so the parts of what all share differ, and their sums agree.
        losses = [sum(part.loss for part in side) for side in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        for name in NAMES:
            join = np.concatenate if name in ("image", "text") else sum
            found, expected = (join([part.gradients[name] for part in side]) for side in (ours, theirs))
            assert np.linalg.norm(found - expected) <= 2e-6 * np.linalg.norm(expected) + 1e-8, name


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_the_loss_is_fp32_under_autocast(config):
    plain = outcome(ALONE, config, [20])
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(ALONE, config, [20])
    assert found.loss == plain.loss
    for name in NAMES:
        np.testing.assert_array_equal(found.gradients[name], plain.gradients[name])


def set_fp32_precision(value: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = value


@pytest.mark.parametrize(("products", "inside"), [("fp32", "ieee"), ("tf32", "tf32")])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("choose", "others"),
    [
        (set_fp32_precision, "tf32"),
        (set_fp32_precision, "none"),
        (torch.set_float32_matmul_precision, "high"),
    ],
)
def test_products_are_as_asked_inside_the_loss_and_nowhere_else(
    monkeypatch, products, inside, fails, choose, others
):
    """However a process has chosen its own, by PyTorch's newer setting or by the older."""
    seen = []

    def watched(comparisons: Comparisons) -> Sums:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        if fails:
            raise RuntimeError("out of memory, say")
        return sigmoid_sums(comparisons)

    monkeypatch.setattr("navit_clip.loss.contrastive.sigmoid_sums", watched)
    torch.set_float32_matmul_precision("highest")
    choose(others)
    chosen = torch.backends.cuda.matmul.fp32_precision
    try:
        with pytest.raises(RuntimeError) if fails else nullcontext():
            contrastive_loss(LossConfig(products=products), random_embeddings(20), [20], ALONE)
        assert (seen, torch.backends.cuda.matmul.fp32_precision) == ([inside], chosen)
    finally:
        set_fp32_precision("none")
        torch.set_float32_matmul_precision("highest")


def rounded_to_tf32(values: torch.Tensor) -> torch.Tensor:
    """Ten bits of mantissa instead of fp32's 23, to the nearest, ties to even."""
    bits = values.float().view(torch.int32)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
    return bits.view(torch.float32).double()


@pytest.mark.parametrize(("scale", "bias"), [(10, -10), (117, -12.9)], ids=["initial", "SigLIP's, trained"])
def test_tf32_moves_gradients_by_less_than_a_thousandth(scale, bias):
    """The streamed loss's three products, their operands rounded as a GPU rounds them."""
    image, noise = (F.normalize(torch.randn(512, 256), dim=1) for _ in "it")
    text = F.normalize(0.15 * image + noise, dim=1)
    signs = 2 * torch.eye(512) - 1
    gradients = []
    for operand in (torch.Tensor.double, rounded_to_tf32):
        logits = operand(scale * image) @ operand(text).T + bias
        of_logits = -signs * torch.sigmoid(-signs * logits)
        gradients.append((operand(of_logits) @ operand(text), operand(of_logits).T @ operand(image)))
    for exact, found in zip(*gradients, strict=True):
        assert 1e-5 < (found - exact).norm() / exact.norm() < 1e-3


def test_without_a_gradient_there_is_the_same_loss():
    for config in SETTINGS:
        with torch.inference_mode():
            found = contrastive_loss(config, random_embeddings(20), [20], ALONE).item()
        assert found == pytest.approx(outcome(ALONE, config, [20]).loss, rel=1e-6)


def test_a_loss_that_is_not_finite_shows_in_every_gradient():
    embeddings = random_embeddings(20)
    embeddings.image[3, 0] = math.inf
    for config in SETTINGS:
        leaves = [part.clone().requires_grad_() for part in embeddings[:2]]
        loss = contrastive_loss(config, Embeddings(*leaves, *embeddings[2:]), [20], ALONE)
        loss.backward()
        assert not math.isfinite(loss.item())
        assert all(leaf.grad.isnan().all() for leaf in leaves if leaf.grad is not None)


def test_the_loss_at_initialisation_is_the_paper_s():
    """Orthogonal embeddings at t' = log 10, b = -10: -log sigmoid(-10) + (n - 1) * 4.54e-5."""
    pairs = 8
    image, text = torch.eye(2 * pairs)[:pairs], torch.eye(2 * pairs)[pairs:]
    embeddings = Embeddings(image, text, torch.arange(pairs), torch.tensor([10.0]), torch.tensor([-10.0]))
    expected = math.log1p(math.exp(10)) + (pairs - 1) * math.log1p(math.exp(-10))
    found = contrastive_loss(LossConfig(), embeddings, [pairs], ALONE).item()
    assert found == pytest.approx(expected, rel=1e-6)
