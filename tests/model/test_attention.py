"""Packed attention against a dense float64 reference, and its backends against each other."""

from __future__ import annotations

import importlib.util
from itertools import groupby, pairwise

import pytest
import torch

from navit_clip.batch import offsets_of
from navit_clip.errors import ConfigError
from navit_clip.model import attention
from navit_clip.model.attention import choose_backend, packed_attention

LENGTHS = {
    "one": [7],
    "equal": [5, 5, 5],
    "sorted": [9, 9, 4, 4, 4, 1],
    "mixed": [3, 8, 3, 1, 64, 8, 1, 3],
}


@pytest.fixture(autouse=True)
def _restore_backend(monkeypatch):
    monkeypatch.setattr(attention, "_chosen", None)


def random_heads(num_tokens: int, dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return [
        torch.randn(num_tokens, 2, 16, generator=generator).to(device, dtype).requires_grad_() for _ in "qkv"
    ]


def dense(query, key, value, offsets, causal):
    """Each sequence on its own, softmax written out, in float64."""
    outputs = []
    for start, end in pairwise(offsets.tolist()):
        q, k, v = (part[start:end].double().transpose(0, 1) for part in (query, key, value))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_sdpa_equals_dense_float64_outputs_and_gradients(lengths, causal):
    offsets = offsets_of(lengths)
    heads = random_heads(sum(lengths), torch.float32)
    weights = torch.randn(sum(lengths), 2, 16, dtype=torch.float64)
    found = packed_attention(*heads, offsets, max(lengths), causal)
    expected = dense(*heads, offsets, causal)
    assert relative_error(found, expected) < 1e-6
    found_gradients = torch.autograd.grad((found * weights).sum(), heads)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), heads)
    for found_gradient, expected_gradient in zip(found_gradients, expected_gradients, strict=True):
        # Query and key gradients of one-token sequences are rounding noise around zero.
        assert (found_gradient - expected_gradient).abs().max() < 1e-5


def test_a_changed_sequence_changes_no_bit_of_another():
    offsets = offsets_of(LENGTHS["mixed"])
    query, key, value = random_heads(91, torch.float32)
    before = packed_attention(query, key, value, offsets, 64)
    with torch.no_grad():
        for part in (query, key, value):
            part[3:11] += 1
    after = packed_attention(query, key, value, offsets, 64)
    assert not torch.equal(before[3:11], after[3:11])
    assert torch.equal(before[:3], after[:3])
    assert torch.equal(before[11:], after[11:])


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown backend 'flash'.*flash_attn"):
        choose_backend("flash", torch.device("cpu"), torch.float32)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_a_backend_that_is_not_installed_says_how_to_get_it():
    with pytest.raises(ConfigError, match=r"not installed; install it with `pip install flash-attn`"):
        choose_backend("flash_attn", torch.device("cuda"), torch.bfloat16)


def test_a_backend_that_cannot_run_here_says_where_it_runs():
    with pytest.raises(ConfigError, match="torch_varlen runs in bfloat16 or float16 on a CUDA device"):
        choose_backend("torch_varlen", torch.device("cpu"), torch.bfloat16)


def test_auto_on_a_cpu_is_sdpa():
    assert choose_backend("auto", torch.device("cpu"), torch.float32) == "sdpa"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", ["flash_attn", "torch_varlen"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_cuda_backends_equal_sdpa(backend, lengths, causal):
    if backend == "flash_attn":
        pytest.importorskip("flash_attn")
    offsets = offsets_of(lengths).cuda()
    heads = random_heads(sum(lengths), torch.bfloat16, "cuda")
    weights = torch.randn(sum(lengths), 2, 16, device="cuda")
    results = {}
    for name in ("sdpa", backend):
        choose_backend(name, torch.device("cuda"), torch.bfloat16)
        output = packed_attention(*heads, offsets, max(lengths), causal)
        results[name] = [output, *torch.autograd.grad((output * weights).sum(), heads)]
    for found, expected in zip(results[backend], results["sdpa"], strict=True):
        assert (found - expected).float().norm() <= 1e-2 * expected.float().norm() + 1e-2


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_an_arranged_pack_is_the_same_pack_in_another_order(lengths):
    offsets = offsets_of(lengths)
    arrangement = attention.arrange(offsets)
    if arrangement is None:
        assert len({length for length, _ in groupby(lengths)}) == len(list(groupby(lengths)))
        return
    heads = random_heads(sum(lengths), torch.float32)
    arranged = packed_attention(
        *(part[arrangement.order] for part in heads), arrangement.offsets, max(lengths)
    )
    assert torch.equal(arranged[arrangement.inverse], packed_attention(*heads, offsets, max(lengths)))
    assert attention.arrange(arrangement.offsets) is None
