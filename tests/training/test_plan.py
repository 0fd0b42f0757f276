"""A plan's arithmetic: against numbers worked by hand, against what autograd keeps, and by what it says."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.simulation import batches, simulate
from navit_clip.cli import USAGE_ERROR
from navit_clip.cli import main as navit_clip
from navit_clip.config import load_config
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from navit_clip.model import attention as attention_backends
from tests.packs import noise_captions, noise_images, pack, pack_captions
from training.config import RunConfig
from training.engine import EngineConfig
from training.plan.command import largest_budget
from training.plan.hardware import GIB, GPUS
from training.plan.memory import Memory, activation_bytes, loss_bytes, memory_of
from training.plan.passes import passes_of
from training.plan.step_time import Waits, block_time, loss_time, step_time, towers_time
from training.plan.supply import supply_of
from training.plan.weights import Weights, all_weights, muon_weights, trained_weights
from training.plan.workload import Workload, draw_images, draw_lengths, typical_sizes, workload_of

SIZE: dict[str, Any] = {"width": 64, "depth": 4, "num_heads": 4, "mlp_dim": 256}
IMAGES, CAPTIONS = [(8, 8)] * 3 + [(6, 8)] * 3, [16] * 3 + [12] * 3
H100 = GPUS["h100"]
LINEAR, OTHERS = 176_358_912, 26_459_138
"""B/16's weights, as ranks exchange them."""
N, TEXT = LINEAR + OTHERS, 85_525_248 + 24_644_352


def b16(root: Path, *overrides: str) -> RunConfig:
    return load_config(RunConfig, root / "configs/run/b16.yaml", ["data.shards=[SHARDS]", *overrides])


def with_lengths(config: RunConfig, lengths: list[int], caption_tokens: int) -> Workload:
    return Workload(config.model, float(len(lengths)), torch.tensor(lengths), caption_tokens)


def workload(config: RunConfig) -> Workload:
    return workload_of(config, draw_lengths(config, typical_sizes(), 256), config.data.tokens_per_batch, 16)


def bytes_kept(tower: torch.nn.Module, batch) -> int:
    """Of all that autograd keeps for backward, each storage once, without the weights."""
    weights = {weight.untyped_storage()._cdata for weight in tower.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = tower(batch)
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def on_a_fake_gpu(mode: FakeTensorMode, batch):
    """Shapes on a device that is not there."""

    def moved(value):
        return mode.from_tensor(value).to("cuda") if isinstance(value, torch.Tensor) else value

    with mode:
        return type(batch)(**{name: moved(getattr(batch, name)) for name in batch.__dataclass_fields__})


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), ("cpu", "bf16"), ("cuda", "bf16")],
    ids=["fp32 on a CPU", "bf16 on a CPU", "bf16 on a GPU"],
)
def test_activations_are_what_autograd_keeps(root, monkeypatch, device, precision, qk_norm):
    model = ClipConfig(
        image=ImageTowerConfig(
            **SIZE, qk_norm=qk_norm, patch_size=4, position=PositionConfig(kind="grid", table_side=8)
        ),
        text=TextTowerConfig(**SIZE, qk_norm=qk_norm, vocab_size=50),
    )
    config = replace(b16(root, f"engine.precision={precision}"), model=model)
    of = with_lengths(config, [rows * columns for rows, columns in IMAGES], sum(CAPTIONS) // len(CAPTIONS))
    batches = {
        "image": pack(noise_images(IMAGES, patch_size=4)),
        "text": pack_captions(noise_captions(CAPTIONS, vocab_size=50)),
    }
    mode = nullcontext()
    if device == "cuda":
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        batches = {name: on_a_fake_gpu(mode, batch) for name, batch in batches.items()}
        monkeypatch.setattr(attention_backends, "_chosen", "torch_varlen")
        monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    half = precision == "bf16"
    with mode, torch.device(device), torch.autocast(device, torch.bfloat16, enabled=half):
        towers = TwoTowers(model)
        kept = {name: bytes_kept(getattr(towers, name), batch) for name, batch in batches.items()}
    for name in ("image", "text"):
        planned = activation_bytes(config, of, name, device)
        casts = 2 * trained_weights(config, name).linear if half else 0  # of weights, once a batch
        assert planned + casts == pytest.approx(kept[name], rel=0.1), name


def test_weights_by_how_they_are_exchanged(root):
    """Blocks have 12 w^2; linear, too, are the patches, the text's head, and pooling's output and MLP."""
    w = 768
    linear = 2 * 12 * 12 * w**2 + (16 * 16 * 3 * w + w) + w**2 + (w**2 + w) + 8 * w**2
    assert all_weights(b16(root)) == Weights(linear, OTHERS) == Weights(LINEAR, OTHERS)
    assert 32_000 * w + 3 * w**2 < OTHERS  # words, pooling's query, key and value
    muon = b16(root, "optimizer.kind=muon", "engine.gradient_clipping=0")
    assert muon_weights(muon) == 2 * 12 * 12 * w**2


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        # 4 N of weights, 2 L that autocast casts; 8 N of moments; 4 N of gradients, flattened once more.
        (0, {"weights": 4 * N + 2 * LINEAR, "moments": 8 * N, "buffers": 0.0, "last": 4 * N + 4 * N}),
        # An eighth of moments and of a copy; two fp32 buffers of 5e7, one full of what was with the weights
        # before; a flat copy of it, and that in bf16.
        (1, {"weights": 4.5 * N + 2 * LINEAR, "moments": N, "buffers": 4e8, "last": 4 * N + (6 - 4) * 5e7}),
        # A share of gradients, and the same copies.
        (2, {"weights": 4.5 * N + 2 * LINEAR, "moments": N, "buffers": 4e8, "last": N / 2 + 6 * 5e7}),
        # Weights gathered in fp32; buffers of bf16 and fp32; a share, and others than L in fp32.
        (3, {"weights": 5 * N + 2 * LINEAR, "moments": N, "buffers": 3e8, "last": N / 2 + 4 * OTHERS}),
    ],
)
def test_the_state_of_eight_ranks_in_bf16(root, stage, expected):
    config = b16(root, f"engine.zero_stage={stage}")
    memory = memory_of(config, with_lengths(config, [64], 16), 8)
    found = {name: getattr(memory, name) for name in ("weights", "moments", "buffers")}
    assert {**found, "last": memory.gradients[2]} == pytest.approx(expected)
    between = {0: 4 * TEXT, 1: 4 * TEXT, 2: N / 2, 3: N / 2}[stage]
    assert memory.gradients[1] == pytest.approx(between)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [(0, 16 * N), (1, 16 * N + 8 * N), (2, 16 * N + 8 * N), (3, 16 * N + 8 * N + 4 * 5e7)],
)
def test_the_state_of_one_rank_on_a_cpu(root, stage, expected):
    """16 N: weights, gradients or the optimizer's copy, moments; 8 N: gradients in slices and flat; at 3 a
    buffer that stays."""
    config = b16(root, f"engine.zero_stage={stage}", "engine.precision=fp32")
    memory = memory_of(config, with_lengths(config, [1], 1), 1, "cpu")
    assert memory.peak == pytest.approx(expected, rel=0.001)


def test_offloaded_state_lies_on_the_host(root):
    of = workload(b16(root))
    kept = memory_of(b16(root, "engine.zero_stage=2"), of, 8)
    away = memory_of(b16(root, "engine.zero_stage=2", "engine.offload_optimizer=cpu"), of, 8)
    assert kept.host == 0
    assert away.host == pytest.approx(16 * N / 8)
    assert kept.peak - away.peak == pytest.approx(12 * N / 8)


def test_muon_keeps_one_moment(root):
    config = b16(root, "optimizer.kind=muon", "engine.gradient_clipping=0", "engine.zero_stage=0")
    assert memory_of(config, workload(config), 1).moments == 8 * N - 4 * 169_869_312


def test_the_most_is_held_at_one_of_three_times():
    nothing = Memory(
        weights=1.0,
        moments=2.0,
        buffers=4.0,
        batches=64.0,
        gradients=(0.0, 0.0, 0.0),
        activations=0.0,
        image_activations=0.0,
        loss=0.0,
        host=99.0,
    )
    assert replace(nothing, activations=8.0, loss=16.0, gradients=(32.0, 0.0, 0.0)).peak == 127
    assert replace(nothing, image_activations=8.0, loss=16.0, gradients=(0.0, 32.0, 0.0)).peak == 127
    assert replace(nothing, gradients=(0.0, 0.0, 32.0)).peak == 103


def test_the_batches_of_two_steps_are_on_the_device(root):
    """Of 1000 images of 64 patches: 768 bytes and two numbers a patch; 16 words, a number each."""
    for number in (1, 3):
        config = b16(root, f"engine.accumulation={number}")
        of = with_lengths(config, [64] * 1000, 16)
        assert memory_of(config, of, 8).batches == 2 * number * 1000 * (64 * (768 + 8) + 16 * 4)


def test_the_loss_keeps_rows_and_a_tile(root):
    of = with_lengths(b16(root), [64] * 1000, 16)
    # Image and text embeddings and their gradients; 3 sides of each rank of a node, 4 more that travel
    # between nodes; 3 copies of a tile, which has the captions of a node up to its own side.
    assert loss_bytes(of, 1, "cuda") == 4 * 1000 * 768 * 4 + 3 * 4 * 1000**2
    assert loss_bytes(of, 2, "cuda") == 10 * 1000 * 768 * 4 + 3 * 4 * 1000 * 2000
    assert loss_bytes(of, 16, "cuda") == 32 * 1000 * 768 * 4 + 3 * 4 * 1000 * 4096
    assert loss_bytes(of, 1, "cpu") == loss_bytes(of, 1, "cuda")


def test_the_gpus_are_those_of_the_data_sheets():
    """TFLOP/s in bf16, TF32 and fp32, TB/s and GiB of memory, GB/s of NVLink one way and of an adapter."""
    sheets = {
        "a100": (312, 156, 19.5, 2.039, 80, 300, 25),
        "h100": (989, 494, 67, 3.35, 80, 450, 50),
        "h200": (989, 494, 67, 4.8, 141, 450, 50),
    }
    assert set(GPUS) == set(sheets)
    for name, (bf16, tf32, fp32, memory, gib, links, adapter) in sheets.items():
        gpu = asdict(GPUS[name])
        expected = {
            "product_rate": 0.75 * bf16 * 1e12,
            "attention_rate": 0.35 * bf16 * 1e12,
            "loss_rate": 0.75 * fp32 * 1e12,
            "tf32_rate": 0.75 * tf32 * 1e12,
            "memory_rate": 0.85 * memory * 1e12,
            "norm_rate": 0.85 * memory * 1e12,
            "gelu_rate": 0.85 * memory * 1e12,
            "memory": 0.92 * gib * GIB,
            "node_size": 8,
            "node_rate": 0.85 * links * 1e9,
            "network_rate": 0.85 * adapter * 1e9,
            "latency": 15e-6,
            "host_latency": 15e-6,
        }
        assert {key: gpu[key] for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("stage", "sent", "hidden"),
    [
        (0, 2 * 4 * N, 0),  # summed in fp32
        (1, 2 * (2 * LINEAR + 4 * OTHERS) + 4 * N, 0),  # summed as they travel; weights gathered in fp32
        (2, 2 * (2 * LINEAR + 4 * OTHERS) + 4 * N, 0),
        (3, 2 * (2 * LINEAR + 4 * OTHERS), 0.8),  # shares out and whole weights in
    ],
)
def test_what_ranks_exchange_in_bf16(root, stage, sent, hidden):
    """Over 64 ranks: eight adapters of a node, 340 GB/s; 12 hops of 15 us a collective, one a bucket, or at
    ZeRO 3 three a block."""
    config = b16(root, f"engine.zero_stage={stage}")
    time = step_time(config, with_lengths(config, [1], 1), 64, H100)
    buckets = 1 if stage == 0 else N / 5e7
    seconds = sent * 63 / 64 / (8 * 42.5e9) + 12 * 15e-6 * (72 if stage == 3 else buckets)
    assert time.exchange == pytest.approx(seconds - hidden * time.towers)


def test_a_frozen_tower_and_several_batches_change_what_is_exchanged(root):
    def exchange(*overrides: str) -> float:
        config = b16(root, *overrides)
        return step_time(config, with_lengths(config, [1], 1), 64, H100).exchange

    hops = 12 * 15e-6 * (90_833_664 + 1_814_784 + 2) / 5e7
    image = (90_833_664 * 2 + 1_814_784 * 4) * 2 + (90_833_664 + 1_814_784 + 2) * 4 + 2 * 2 * 4
    frozen = exchange("engine.zero_stage=1", "optimizer.text.freeze=true")
    assert frozen == pytest.approx(image * 63 / 64 / 340e9 + hops)
    gradients = 2 * (2 * LINEAR + 4 * OTHERS) * 63 / 64 / 340e9
    for stage, again in ((1, 0), (2, 1)):
        one, two = (exchange(f"engine.zero_stage={stage}", f"engine.accumulation={n}") for n in (1, 2))
        assert two - one == pytest.approx(again * gradients, abs=1e-9)


def test_the_time_of_a_block_beside_its_products(root):
    """Bytes a token of width w, hidden 4 w: norms 2 (6*4 + 2), GELU 5*2*4, sums 12*4 + 6*2, casts 6*6."""
    model = b16(root).model.image
    passed = (52 + 40 + 60 + 36) * 768
    assert block_time(model, True, H100) == pytest.approx(passed / (0.85 * 3.35e12))
    in_fp32 = (2 * 28 + 5 * 4 * 4 + 18 * 4) * 768
    assert block_time(model, False, H100) == pytest.approx(in_fp32 / (0.85 * 3.35e12))


@pytest.mark.parametrize(("length", "passes_memory"), [(64, True), (1024, False)])
def test_the_time_of_the_towers(root, length, passes_memory):
    """Of one image and one caption word: products, attention or its memory, and all else, three times."""
    w, of_memory = 768, 0.85 * 3.35e12
    config = b16(root, "optimizer.text.freeze=true")
    of = with_lengths(config, [length] * 10, 1)
    tokens = 10 * length
    products = (
        2 * 12 * w**2 * 12 * tokens + 2 * 768 * w * tokens + 2 * (12 + w) * w * tokens + 2 * 9 * w**2 * 10
    )
    attention = 12 * 4 * w * 10 * length**2 / (0.35 * 989e12)
    moved = 12 * 4 * 2 * w * tokens / of_memory
    assert (moved > attention) == passes_memory
    image = products / (0.75 * 989e12) + max(attention, moved) + 12 * tokens * 188 * w / 3 / of_memory
    caption = (2 * 12 * w**2 * 12 + 2 * w**2) * 10 / (0.75 * 989e12) + 12 * 10 * (8 + 188 / 3) * w / of_memory
    # Nothing of a frozen tower goes backward.
    assert towers_time(config, of, H100) == pytest.approx(3 * image + caption, rel=0.001)


@pytest.mark.parametrize(
    ("settings", "ranks", "passed", "fresh"),
    [
        # The norm, clipping (2), AdamW (7).
        ({"zero_stage": 0}, 1, 10 * 4 * N, 0),
        # Joined, divided (2), copied back (2); the joined vector is new.
        ({"zero_stage": 0}, 2, 10 * 4 * N + 5 * 4 * N, 4 * N),
        # Into a bucket (2, less one that is new), divided (2), to the share (1, and that is new); the norm in
        # double (5), flat (1, new), clipping (2), AdamW (7), out of the copy (2).
        ({"zero_stage": 1}, 1, 22 * 4 * N - 4 * 5e7, 8 * N + 4 * 5e7),
        ({"zero_stage": 1, "accumulation": 2}, 1, 22 * 4 * N - 4 * 5e7, 8 * N + 4 * 5e7),
        ({"zero_stage": 2, "accumulation": 2}, 1, 27 * 4 * N - 8 * 5e7, 12 * N + 8 * 5e7),
        # And joined (1, new), half of it copied back (2); of the 18 of a share, half.
        ({"zero_stage": 1}, 2, (4 + 1 + (2 + 18) / 2) * 4 * N - 4 * 5e7, 8 * N + 4 * 5e7),
        # Into a bucket (2), joined (1, new), divided (2), to the share (2); the 17 of a step.
        ({"zero_stage": 3}, 1, (2 + 1 + 2 + 2 + 17) * 4 * N, 8 * N),
        # And weights gathered (new), read and copied (2); gradients but half a share.
        ({"zero_stage": 3}, 2, (2 + 1 + 2 + 2 + (2 + 17) / 2) * 4 * N, (1 + 0.5 + 1) * 4 * N),
        # Linear layers' are cast (10 bytes, 2 of them new); two buckets, the other not even full.
        (
            {"zero_stage": 1, "precision": "bf16"},
            1,
            22 * 4 * N - 4 * (5e7 + OTHERS) + 10 * LINEAR,
            8 * N + 4 * (5e7 + OTHERS) + 2 * LINEAR,
        ),
        # Gloo sums in a copy (1, new), and takes a share of it (2).
        ({"zero_stage": 3, "on_cpu": True}, 1, (24 + 3) * 4 * N, 12 * N),
        # And gathers in memory of its own (1, new) what is copied (2, or 1 to memory counted as new).
        ({"zero_stage": 1, "on_cpu": True}, 2, (15 + 2) * 4 * N - 4 * 5e7, 12 * N + 4 * 5e7),
        ({"zero_stage": 3, "on_cpu": True}, 2, (16.5 + 2 + 1) * 4 * N, (2.5 + 1 + 1) * 4 * N),
        # The host's AdamW is not counted.
        ({"zero_stage": 1, "offload_optimizer": "cpu"}, 1, 15 * 4 * N - 4 * 5e7, 8 * N + 4 * 5e7),
    ],
)
def test_what_deepspeed_and_the_optimizer_pass_over(settings, ranks, passed, fresh):
    """Times over N numbers of 4 bytes, counted in DeepSpeed's source."""
    weights, on_cpu = Weights(LINEAR, OTHERS), settings.pop("on_cpu", False)
    engine = EngineConfig(**{"precision": "fp32", **settings})
    found = passes_of(engine, weights, weights, ranks, on_cpu)
    assert found == pytest.approx((passed, fresh))


def test_new_memory_is_as_fast_as_any_on_a_gpu_and_slower_here(root):
    config = b16(root)
    passes = passes_of(config.engine, all_weights(config), all_weights(config), 8)
    of = workload(config)
    assert step_time(config, of, 8, H100).optimizer == pytest.approx(sum(passes) / (0.85 * 3.35e12))
    slower = replace(H100, fresh_rate=1e9, memory_rate=1e10)
    assert step_time(config, of, 8, slower).optimizer == pytest.approx(
        passes.passed / 1e10 + passes.fresh / 1e9
    )


def test_the_time_of_the_loss(root):
    """1000 pairs of 768: 6 n^2 w operations in fp32 and 40 n^2 bytes; 8 n w bytes a journey."""
    block = 6 * 1e6 * 768 / (0.75 * 67e12) + 40e6 / (0.85 * 3.35e12)
    rows = 4 * 1000 * 768
    journey = 15e-6 + 2 * rows / 42.5e9
    shared = 2 * (15e-6 + 7 * rows / 382.5e9) + 43 * rows / (0.85 * 3.35e12)
    assert loss_time(1000.0, 768, 1, H100) == pytest.approx(block)
    assert loss_time(1000.0, 768, 8, H100) == pytest.approx(8 * block + shared)
    assert block < journey < 8 * block
    assert loss_time(1000.0, 768, 1024, H100) == pytest.approx(128 * (8 * block + shared) + journey)
    slow = replace(H100, network_rate=H100.network_rate / 8)
    journey = 15e-6 + 8 * 2 * rows / 42.5e9
    assert loss_time(1000.0, 768, 1024, slow) == pytest.approx(128 * (journey + shared) + journey)
    few = 15e-6 + 2 * 4 * 100 * 768 / 42.5e9
    assert loss_time(100.0, 768, 1024, H100) == pytest.approx(128 * 4e-4 + few), "the host has to start it"


def test_the_loss_in_tf32(root):
    config = b16(root, "loss.products=tf32")
    of = workload(config)
    quick = replace(H100, loss_rate=0.75 * 494e12)
    assert step_time(config, of, 64, H100).loss == loss_time(of.pairs, 768, 64, quick)
    assert step_time(b16(root), of, 64, H100).loss == loss_time(of.pairs, 768, 64, H100)


def test_all_wait_for_the_slowest_rank_and_for_the_hosts(root):
    config = b16(root)
    of = workload(config)
    even = step_time(config, of, 1024, H100)
    waiting = step_time(config, of, 1024, H100, Waits(towers=0.01, pairs=0.06))
    assert waiting.towers == pytest.approx(1.01 * even.towers)
    assert waiting.loss == pytest.approx(1.06 * even.loss)
    assert even.hosts == 0, "half of the towers' time is longer than 1023 hops of 15 us"
    slow = step_time(config, of, 4096, replace(H100, host_latency=50e-6))
    assert slow.hosts == pytest.approx(4095 * 50e-6 - 0.5 * slow.towers)
    assert slow.total == slow.towers + slow.loss + slow.exchange + slow.optimizer + slow.hosts


def test_what_weak_scaling_says_of_so400m(root):
    """The row of docs/scaling.md with checkpoints at 384 px: 231 images of 576 patches fit, 95 % at 1024."""
    model = f"model.from={root}/configs/model/so400m16.yaml"
    config = b16(root, model, "model.image.checkpoint_blocks=true")
    of = with_lengths(config, [576] * 231, 16)
    assert memory_of(config, of, 8).peak < H100.memory
    node, many = (step_time(config, of, ranks, H100).total for ranks in (8, 1024))
    assert node == pytest.approx(1.12, abs=0.01)
    assert node / many == pytest.approx(0.95, abs=0.005)


def test_the_precision_of_the_towers_is_that_of_their_rates(root):
    half, full = (b16(root, f"engine.precision={name}") for name in ("bf16", "fp32"))
    of = with_lengths(half, [1024] * 64, 16)
    products = of.forward_flops("image") - of.attention_flops("image")
    towers = [step_time(config, of, 1, H100).towers for config in (half, full)]
    assert towers[1] > 3 * products / (0.75 * 67e12) > 5 * towers[0]


def test_the_data_of_a_run(root):
    supply = supply_of(
        b16(root, "pairs=1000001", "data.num_workers=4", "schedule.warmup_pairs=0"), 16_000.0, 8, H100
    )
    assert supply.cores_per_rank == pytest.approx(1.3 * 2000 / 700)
    assert supply.storage_rate == pytest.approx(1.3 * 16_000 * 50_000)
    assert supply.shards == 101


def test_sharding_takes_memory_away_stage_by_stage(root):
    # ZeRO 3 takes something away beyond the 10^9 weights that stay gathered.
    large = b16(root, f"model.from={root}/configs/model/so400m16.yaml", "model.image.depth=81")
    of = workload(large)
    peaks = [
        memory_of(replace(large, engine=replace(large.engine, zero_stage=stage)), of, 64).peak
        for stage in range(4)
    ]
    assert peaks[0] > peaks[1] >= peaks[2] > peaks[3]


def test_checkpoints_and_frozen_towers_take_activations_away(root):
    config = b16(root)
    of = workload(config)
    checkpointed = b16(root, "model.image.checkpoint_blocks=true", "model.text.checkpoint_blocks=true")
    frozen = b16(root, "optimizer.image.freeze=true")
    plain = memory_of(config, of, 8)
    assert memory_of(checkpointed, of, 8).activations < 0.25 * plain.activations
    assert memory_of(frozen, of, 8).image_activations == 0
    assert all_weights(frozen).total - trained_weights(frozen).total == 92_648_448


def test_the_largest_budget_fits_and_the_next_does_not(root):
    config = b16(root)
    of = workload(config)
    budget = largest_budget(config, of, 8, H100)
    assert budget is not None
    for tokens, fits in ((budget, True), (budget + 1024, False)):
        peak = memory_of(config, workload_of(config, of.lengths, tokens, 16), 8).peak
        assert (peak <= H100.memory) == fits


def test_checkpoints_cost_a_forward_and_accumulation_another(root):
    config = b16(root)
    of = workload(config)
    plain = step_time(config, of, 8, H100)
    checkpointed = b16(root, "model.image.checkpoint_blocks=true", "model.text.checkpoint_blocks=true")
    accumulated = b16(root, "engine.accumulation=2")
    assert step_time(checkpointed, of, 8, H100).towers == pytest.approx(4 / 3 * plain.towers)
    assert step_time(accumulated, of, 8, H100).towers == pytest.approx(2 * 4 / 3 * plain.towers)
    assert step_time(accumulated, of, 8, H100).model_flops == pytest.approx(2 * plain.model_flops)


def test_the_simulation_packs_as_streams_do(root):
    sides = ["data.resolution.kind=patches", "data.resolution.patches=[16,64]", "data.drop.rate=0.0"]
    config = b16(
        root, *sides, "data.resolution.same_in_batch=true", "data.tokens_per_batch=1024", "data.lookahead=4"
    )
    pool = draw_images(config, [(200, 200)], 64)
    cut = list(islice(batches(config, pool, np.random.default_rng(0)), 20))
    assert {len(batch) for batch in cut} == {16, 64}
    assert all(len({pair.image_tokens for pair in batch}) == 1 for batch in cut)

    capped = b16(root, "data.tokens_per_batch=4096", "data.max_text_tokens=256", "data.lookahead=4")
    pool = draw_images(capped, typical_sizes(), 64)
    row = simulate(capped, pool, num_ranks=4, steps=2, gpu=H100)
    assert 256 - 22 < row.mean.text_tokens <= 256
    assert row.mean.image_tokens < 0.6 * 4096
    assert 0 < row.waits.towers < 1


def test_a_plan_says_what_fits_and_what_does_not(root, capsys):
    config = str(root / "configs/run/b16.yaml")
    assert navit_clip(["plan", config, "--gpus", "64"]) == 0
    said = capsys.readouterr().out
    assert "64 x h100: 202.8M parameters, ZeRO 1, bf16, 65536 image tokens a batch" in said
    assert "DOES NOT FIT" not in said
    assert navit_clip(["plan", config, "data.tokens_per_batch=1000000", "--gpus", "64"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_a_plan_warns_of_too_few_workers_and_of_too_many_pairs(root, capsys):
    config, batch = str(root / "configs/run/b16.yaml"), "data.tokens_per_batch=16384"
    assert navit_clip(["plan", config, batch, "data.num_workers=64", "--gpus=8"]) == 0
    said = capsys.readouterr().out
    assert "DATA-BOUND" not in said
    assert "32,768" not in said
    assert navit_clip(["plan", config, "data.num_workers=2", "--gpus=64"]) == 0
    said = capsys.readouterr().out
    assert "cores a rank, DATA-BOUND with data.num_workers 2;" in said
    assert "beyond 32,768" in said


def test_a_plan_names_what_it_does_not_count(root, capsys):
    config = str(root / "configs/run/b16.yaml")
    offload = ["engine.offload_optimizer=nvme", "engine.offload_folder=/tmp", "engine.zero_stage=3"]
    assert navit_clip(["plan", config, *offload, "engine.compile=true", "--gpus", "8"]) == 0
    said = capsys.readouterr().out
    assert "not counted  waiting for the slowest rank; what torch.compile fuses" in said
    assert "the optimizer's files" in said
    assert (
        navit_clip(["plan", config, "engine.offload_optimizer=cpu", "engine.zero_stage=2", "--gpus", "8"])
        == 0
    )
    assert "host         387 MiB a rank, offloaded" in capsys.readouterr().out


@pytest.mark.parametrize("cap", ["data.max_images=512", "data.max_text_tokens=8192"])
def test_where_a_cap_binds_any_budget_fits(root, capsys, cap):
    assert navit_clip(["plan", str(root / "configs/run/b16.yaml"), cap]) == 0
    assert "budget       any fits: a cap leaves 512 pairs a batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--gpus", "0"], "--gpus: expected 1 to 1048576, found 0"),
        (["--gpus", "9" * 400], "--gpus: expected 1 to 1048576, found far more"),
        (["--caption-tokens", "0"], "--caption-tokens: expected 1 to"),
        (["data.tokens_per_batch=100"], "data.tokens_per_batch: expected at least"),
        (["data.tokens_per_batch=" + "9" * 400], "data.tokens_per_batch: expected 1 to"),
    ],
)
def test_an_impossible_plan_is_named(root, capsys, wrong, named):
    assert navit_clip(["plan", str(root / "configs/run/b16.yaml"), *wrong]) == USAGE_ERROR
    assert named in capsys.readouterr().err
