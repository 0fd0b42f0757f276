"""What machines do a second, by data sheets and published measurements, or as measured here and now."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from navit_clip.batch import offsets_of
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from navit_clip.model.attention import packed_attention
from training.plan.weights import FP32
from training.plan.workload import Workload

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One rank's device and what joins it to others. Operations and bytes are a second's."""

    name: str
    product_rate: float
    """Floating-point operations of large matrix products in the towers' precision, as they are reached."""
    attention_rate: float
    """Those of attention, forward and backward."""
    loss_rate: float
    """Those of fp32 matrix products, in which the loss is computed."""
    tf32_rate: float
    """Those of TF32 ones, where the loss may use them; a CPU has none, and computes in fp32."""
    memory_rate: float
    """Bytes between memory and the device, as they are reached."""
    norm_rate: float
    """Those of layer norms, forward and backward, which a CPU has to compute for longer."""
    gelu_rate: float
    """Those of GELU, likewise."""
    fresh_rate: float
    """Those written to memory that was just obtained: a CPU's system clears it page by page, and takes it
    back when it is freed, where a GPU's allocator keeps it."""
    call_time: float
    """Seconds that a host takes for a small operation; a GPU's host runs ahead."""
    memory: float
    """Bytes that a run may use."""
    node_size: int
    """Ranks that the faster links join."""
    node_rate: float
    """Bytes between a rank and another of its node, one way."""
    network_rate: float
    """Bytes between a rank and another node's, one way, over the adapter that is its own."""
    latency: float = 15e-6
    """Seconds that an exchange takes at least: an assumption, measured nowhere."""
    host_latency: float = 15e-6
    """Seconds from one host to the next, over TCP: an assumption, likewise."""
    decode_rate: float = 700.0
    """Images that one core decodes, resizes and cuts (an EPYC's: 640 to 1000, benchmarks/decode.py)."""

    def computing_in(self, precision: str) -> Hardware:
        """This device, where towers compute in fp32; what is measured is measured as the run computes."""
        if precision != "fp32" or self.name == "this":
            return self
        slower = self.loss_rate / self.product_rate
        return replace(self, product_rate=self.loss_rate, attention_rate=slower * self.attention_rate)


NORM_PASSES = 7
"""Over the values of a layer norm, forward (2) and backward (5: its weights' gradients read all again)."""
GELU_PASSES = 5
"""Over the values of GELU, forward (2) and backward (3)."""
MOST_ROWS = 4096
"""On which rates are measured: more change nothing, and take minutes and gigabytes."""
REACHED = 0.75
"""Of the data sheet's matrix-product rate: cuBLAS in bfloat16 on large matrices."""
ATTENTION_REACHED = 0.35
"""FlashAttention-2 on an H100, about 350 TFLOP/s of 989 (2407.08608, section 4)."""
MEMORY_REACHED = 0.85
"""Of the data sheet's bandwidth: an assumption, as are the shares without a source above and below."""
NETWORK_REACHED = 0.85
"""NCCL's bus bandwidth over that of the links, large messages."""
NODE_SIZE = 8
"""GPUs that NVLink joins."""
USABLE = 0.92
"""Of a GPU's memory: the context, NCCL's buffers and the allocator's gaps take the rest."""


def _gpu(name: str, bf16: float, tf32: float, fp32: float, memory: float, gib: int, links: float) -> Hardware:
    """A GPU in nodes of eight, each with an adapter of 400 Gb/s (H100 and H200) or 200 Gb/s (A100)."""
    adapter = 25e9 if name == "a100" else 50e9
    return Hardware(
        name=name,
        product_rate=REACHED * bf16,
        attention_rate=ATTENTION_REACHED * bf16,
        loss_rate=REACHED * fp32,
        tf32_rate=REACHED * tf32,
        memory_rate=MEMORY_REACHED * memory,
        norm_rate=MEMORY_REACHED * memory,
        gelu_rate=MEMORY_REACHED * memory,
        fresh_rate=MEMORY_REACHED * memory,
        call_time=0.0,
        memory=USABLE * gib * GIB,
        node_size=NODE_SIZE,
        node_rate=NETWORK_REACHED * links / 2,
        network_rate=NETWORK_REACHED * adapter,
    )


GPUS = {
    # NVIDIA's data sheets, SXM: dense bfloat16, TF32, fp32, memory bandwidth, memory, NVLink both ways.
    "a100": _gpu("a100", 312e12, 156e12, 19.5e12, 2.039e12, 80, 600e9),
    "h100": _gpu("h100", 989e12, 494e12, 67e12, 3.35e12, 80, 900e9),
    "h200": _gpu("h200", 989e12, 494e12, 67e12, 4.8e12, 141, 900e9),
}


def measured_here(workload: Workload, world: World, precision: str, num_ranks: int = 1) -> Hardware:
    """This machine's CPU, a rank a process.

    Args:
        workload: products, norms and GELU are timed at its towers' widths, on as many rows as a batch has,
            or MOST_ROWS.
        world: all ranks measure at once; what a single one cannot, the way to others, is taken to be a
            quarter of the memory's rate: copied out and in, read and written each time.
        precision: of the towers' products and attention.
        num_ranks: that will share this process's threads and memory. It measures with its part of the
            threads; what ranks take of each other's memory bandwidth it does not see.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // num_ranks))
    try:
        return _measured(workload, world, torch.bfloat16 if precision == "bf16" else torch.float32, num_ranks)
    finally:
        torch.set_num_threads(threads)


def _measured(workload: Workload, world: World, dtype: torch.dtype, num_ranks: int) -> Hardware:
    model = workload.model
    sizes = [
        (tower.width, tower.mlp_dim, min(MOST_ROWS, max(1, round(tokens))))
        for tower, tokens in ((model.image, workload.image_tokens), (model.text, workload.text_tokens))
    ]
    product_rate = _product_rate(sizes, dtype)
    memory_rate = _memory_rate()
    fp32_rate = product_rate if dtype == torch.float32 else _product_rate(sizes, torch.float32)
    between = memory_rate / 4 if world.size == 1 else _exchange_rate(world)
    width, hidden, tokens = sizes[0]
    return Hardware(
        name="this",
        product_rate=product_rate,
        attention_rate=_attention_rate(dtype),
        loss_rate=fp32_rate,
        tf32_rate=fp32_rate,
        memory_rate=memory_rate,
        norm_rate=_norm_rate(tokens, width),
        gelu_rate=_gelu_rate(tokens, hidden),
        fresh_rate=_fresh_rate(),
        call_time=_call_time(),
        memory=_available_memory() / num_ranks,
        node_size=os.cpu_count() or 1,
        node_rate=between,
        network_rate=between,
    )


def _available_memory() -> float:
    """Bytes that programs can still have, the page cache given up for them."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    raise ConfigError("--gpu this: expected MemAvailable in /proc/meminfo, found none")


def _product_rate(sizes: Sequence[tuple[int, int, int]], dtype: torch.dtype) -> float:
    """Of MLPs' products, forward and both of backward, in turn; of width, hidden width and rows of each."""
    operations = seconds = 0.0
    for width, hidden, tokens in sizes:
        rows, weight, upstream = (
            torch.randn(*shape, dtype=dtype) for shape in ((tokens, width), (hidden, width), (tokens, hidden))
        )

        def three(rows: Tensor = rows, weight: Tensor = weight, upstream: Tensor = upstream) -> None:
            _ = rows @ weight.T
            _ = upstream @ weight
            _ = upstream.T @ rows

        operations += 3 * 2.0 * tokens * width * hidden
        seconds += _seconds(three)
    return operations / seconds


def _norm_rate(tokens: int, width: int) -> float:
    """Of NORM_PASSES over the values."""
    values, upstream = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
    norm = torch.nn.LayerNorm(width)
    return NORM_PASSES * FP32 * tokens * width / _seconds(lambda: norm(values).backward(upstream))


def _gelu_rate(tokens: int, hidden: int) -> float:
    """Of GELU_PASSES over the values."""
    values, upstream = torch.randn(tokens, hidden, requires_grad=True), torch.randn(tokens, hidden)
    gelu = torch.nn.GELU(approximate="tanh")
    return GELU_PASSES * FP32 * tokens * hidden / _seconds(lambda: gelu(values).backward(upstream))


def _fresh_rate(numbers: int = 2**26) -> float:
    """Of filling memory that comes from the system and goes back there.

    An allocator might have a hole of that size, and be several times as fast.
    """

    def obtain_and_fill() -> None:
        pages = mmap.mmap(-1, int(FP32) * numbers, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        torch.frombuffer(pages, dtype=torch.float32).fill_(1.0)

    return FP32 * numbers / _seconds(obtain_and_fill)


def _exchange_rate(world: World, numbers: int = 2**25) -> float:
    """Of a ring that sums over ranks: each number leaves a rank twice, less its share. Far more than caches
    hold, as gradients are."""
    values = torch.zeros(numbers)
    return 2 * (1 - 1 / world.size) * FP32 * numbers / _seconds(lambda: world.sum(values))


def _attention_rate(
    dtype: torch.dtype, images: int = 8, length: int = 196, heads: int = 6, head_dim: int = 64
) -> float:
    """Of images of 196 patches, forward and backward."""
    offsets = offsets_of([length] * images)
    query, key, value = (
        torch.randn(images * length, heads, head_dim, dtype=dtype, requires_grad=True) for _ in "qkv"
    )

    def both() -> None:
        packed_attention(query, key, value, offsets, length).sum().backward()

    return 3 * 4.0 * images * heads * length**2 * head_dim / _seconds(both)


def _memory_rate(numbers: int = 2**24) -> float:
    """Of adding two long vectors: two are read and one is written."""
    left, right, total = (torch.ones(numbers) for _ in range(3))
    return 3 * 4.0 * numbers / _seconds(lambda: torch.add(left, right, out=total))


def _call_time(calls: int = 1000) -> float:
    """Of adding two short vectors."""
    left, right = torch.ones(4), torch.ones(4)

    def add() -> None:
        for _ in range(calls):
            _ = left + right

    return _seconds(add) / calls


def _seconds(run: Callable[[], object], turns: int = 5) -> float:
    """The median of a few turns, after one to warm up."""
    run()
    elapsed = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        elapsed.append(time.perf_counter() - start)
    return sorted(elapsed)[turns // 2]
