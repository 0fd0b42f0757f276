"""Attention kept inside each sequence of a pack. The one file that names attention kernels.

Three backends compute the same function; which one runs is decided once and printed at start:

    flash_attn     the flash-attn package's `flash_attn_varlen_func` (CUDA, half precision)
    torch_varlen   PyTorch's own `varlen_attn`: flash, built in (CUDA, half precision)
    sdpa           `scaled_dot_product_attention`, one call per group of sequences of equal length:
                   the CPU's path, and any device's in full precision

None of them ever forms a [tokens, tokens] mask. A backend that was asked for and cannot run is an error.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor

from navit_clip.batch import offsets_of
from navit_clip.config import nearest
from navit_clip.errors import ConfigError

Backend = Literal["flash_attn", "torch_varlen", "sdpa"]

_chosen: Backend | None = None


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Decides how every `packed_attention` of this process runs from here on.

    Args:
        name: a backend, or "auto": flash_attn where it is installed, else torch_varlen, for half
            precision on CUDA; sdpa everywhere else.
        device: where the towers are.
        dtype: what they compute in.

    Raises:
        ConfigError: the backend is unknown, not installed, or cannot run there; says what to do.
    """
    global _chosen
    half_on_cuda = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    flash_installed = importlib.util.find_spec("flash_attn") is not None
    if name == "auto":
        name = ("flash_attn" if flash_installed else "torch_varlen") if half_on_cuda else "sdpa"
    if name not in get_args(Backend):
        raise ConfigError(
            f"attention: unknown backend {name!r}; {nearest(name, [*get_args(Backend), 'auto'])}"
        )
    if name == "flash_attn" and not flash_installed:
        raise ConfigError(
            "attention: flash_attn is asked for and not installed; install it with "
            "`pip install flash-attn` (builds with nvcc), or set attention to torch_varlen, "
            "which needs no package, or to auto"
        )
    if name != "sdpa" and not half_on_cuda:
        raise ConfigError(
            f"attention: {name} runs in bfloat16 or float16 on a CUDA device, found {dtype} on {device}; "
            "set attention to sdpa or auto"
        )
    _chosen = name  # type: ignore[assignment]
    return _chosen  # type: ignore[return-value]


def packed_attention(
    query: Float[Tensor, "tokens heads head_dim"],
    key: Float[Tensor, "tokens heads head_dim"],
    value: Float[Tensor, "tokens heads head_dim"],
    offsets: Int32[Tensor, " sequences_plus_one"],
    max_length: int,
    causal: bool = False,
) -> Float[Tensor, "tokens heads head_dim"]:
    """softmax(q k^T / sqrt(head_dim)) v within each sequence: token t attends to its own sequence alone.

    Args:
        query: queries of all sequences, one after the other.
        key: keys, likewise.
        value: values, likewise.
        offsets: start of each sequence, then the total.
        max_length: tokens of the longest sequence.
        causal: a token sees itself and what comes before it.
    """
    if _chosen == "flash_attn":
        return _flash_attn(query, key, value, offsets, max_length, causal)
    if _chosen == "torch_varlen":
        return _torch_varlen(query, key, value, offsets, max_length, causal)
    return _sdpa(query, key, value, offsets, causal)


class Arrangement(NamedTuple):
    """A pack in another order of its sequences."""

    order: Tensor
    """The token that comes to each place."""
    inverse: Tensor
    """The place that each token comes to."""
    offsets: Int32[Tensor, " sequences_plus_one"]


def arrange(offsets: Int32[Tensor, " sequences_plus_one"]) -> Arrangement | None:
    """The order that the backend likes a pack in, or None where it likes the pack as it is.

    `packed_attention` takes any order. But sdpa gathers sequences of equal length, and a tower that does it
    once, before its first block, saves every block from doing it.
    """
    if _chosen in ("flash_attn", "torch_varlen"):
        return None
    arrangement = _plan(tuple(offsets.tolist())).arrangement
    return arrangement and Arrangement(*(part.to(offsets.device) for part in arrangement))


def _flash_attn(query, key, value, offsets, max_length, causal):
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    return flash_attn_varlen_func(query, key, value, offsets, offsets, max_length, max_length, causal=causal)


def _torch_varlen(query, key, value, offsets, max_length, causal):
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if causal else (-1, -1)
    attended = varlen_attn(query, key, value, offsets, offsets, max_length, max_length, window_size=window)
    assert isinstance(attended, Tensor)  # a tuple only where auxiliary outputs are asked for
    return attended


def _sdpa(query, key, value, offsets, causal):
    groups, arrangement = _plan(tuple(offsets.tolist()))
    if arrangement is not None:
        order = arrangement.order.to(query.device)
        query, key, value = query[order], key[order], value[order]
    if len(groups) == 1:  # nothing to take apart, which would cost copies here and in the backward pass
        output = _equal_sequences(query, key, value, groups[0], causal)
    else:
        sizes = [count * length for count, length in groups]
        parts = zip(query.split(sizes), key.split(sizes), value.split(sizes), groups, strict=True)
        output = torch.cat([_equal_sequences(q, k, v, group, causal) for q, k, v, group in parts])
    return output if arrangement is None else output[arrangement.inverse.to(query.device)]


def _equal_sequences(query, key, value, group: tuple[int, int], causal: bool):
    """One call for so many sequences of one length."""
    q, k, v = (part.unflatten(0, group).transpose(1, 2) for part in (query, key, value))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attended.transpose(1, 2).flatten(0, 1)


class _Plan(NamedTuple):
    """How the sdpa backend walks a pack."""

    groups: list[tuple[int, int]]
    """(sequences, length of each) for each run of sequences of one length."""
    arrangement: Arrangement | None
    """Makes equal lengths neighbours; None where they already are."""


@lru_cache(maxsize=16)  # every block of a tower asks for the same plan
def _plan(offsets: tuple[int, ...]) -> _Plan:
    spans = [(start, end) for start, end in pairwise(offsets) if end > start]
    runs = [length for length, _ in groupby(end - start for start, end in spans)]
    arrangement = None
    if len(runs) > len(set(runs)):
        spans.sort(key=lambda span: span[1] - span[0])
        order = torch.cat([torch.arange(start, end) for start, end in spans])
        arrangement = Arrangement(order, order.argsort(), offsets_of([end - start for start, end in spans]))
    lengths = [end - start for start, end in spans]
    return _Plan([(len(list(run)), length) for length, run in groupby(lengths)], arrangement)
