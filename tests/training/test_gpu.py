"""What a GPU computes, beside what a CPU does: the same steps under every ZeRO stage, bf16 near fp32."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Literal

import pytest
import torch

from navit_clip.batch import Batch, Embeddings
from navit_clip.data import TrainLoader
from navit_clip.distributed import World
from navit_clip.loss import LossConfig, contrastive_loss
from navit_clip.model import ClipConfig, ImageTowerConfig, TextTowerConfig, TwoTowers, attention
from navit_clip.model.attention import choose_backend
from navit_clip.tokenizer import load_tokenizer
from tests.packs import noise_captions, noise_images, pack, pack_captions
from tests.ranks import on_ranks
from tests.training.test_engine import engine_losses, plain_losses
from tests.training_builders import small_run
from training.engine import EngineConfig
from training.feed import Feed
from training.gradient import Contrast
from training.metrics import Meter
from training.stop import StopRequest

CYCLES = 2_000_000_000
"""Of a GPU: about a second."""
SIZE = {"width": 64, "depth": 3, "num_heads": 4, "mlp_dim": 128}

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=on_a_gpu)])
def device(request, monkeypatch) -> torch.device:
    monkeypatch.setattr(attention, "_chosen", None)
    return torch.device(request.param)


def small_model_and_batch(device: torch.device, dtype: torch.dtype) -> tuple[TwoTowers, Batch]:
    choose_backend("auto", device, dtype)
    torch.manual_seed(0)
    model = TwoTowers(
        ClipConfig(image=ImageTowerConfig(**SIZE, patch_size=4), text=TextTowerConfig(**SIZE, vocab_size=50))
    )
    model.compute_dtype = dtype
    images = pack(noise_images([(7, 9), (3, 5), (1, 1), (16, 12)], patch_size=4))
    captions = pack_captions(noise_captions([4, 9, 9, 1], vocab_size=50))
    return model.to(device), Batch(images, captions, tuple("abcd")).to(device)


def embeddings_and_gradients(device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Of one small batch, in fp64 on the host."""
    model, batch = small_model_and_batch(device, dtype)
    embeddings = model(batch)
    contrastive_loss(LossConfig(), embeddings, [len(batch)], World(0, 1, device)).backward()
    gradients = [model.image.patch_embedding.weight.grad, model.text.token_embedding.weight.grad]
    return [part.detach().cpu().double() for part in (*embeddings[:2], *gradients)]  # type: ignore[union-attr]


def relative_errors(found: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


def test_bf16_is_near_fp32(device):
    expected = embeddings_and_gradients(torch.device("cpu"), torch.float32)
    errors = relative_errors(embeddings_and_gradients(device, torch.bfloat16), expected)
    assert max(errors[:2]) < 1e-2
    assert max(errors[2:]) < 5e-2


def test_fp32_is_the_same_everywhere(device):
    expected = embeddings_and_gradients(torch.device("cpu"), torch.float32)
    assert max(relative_errors(embeddings_and_gradients(device, torch.float32), expected)) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("products", "bound"), [("fp32", 2e-6), ("tf32", 2e-3)])
def test_the_loss_is_as_exact_as_its_products(products: Literal["fp32", "tf32"], bound: float):
    pairs = [torch.nn.functional.normalize(torch.randn(2000, 256, device="cuda"), dim=1) for _ in range(2)]
    found = []
    for dtype in (torch.float32, torch.float64):  # there is no tf32 in fp64
        image, text = (part.to(dtype).requires_grad_() for part in pairs)
        scalars = [torch.tensor([value], dtype=dtype, device="cuda") for value in (10.0, -10.0)]
        embeddings = Embeddings(image, text, torch.arange(2000, device="cuda"), *scalars)
        loss = contrastive_loss(LossConfig(products=products), embeddings, [2000], World(0, 1, image.device))
        found.append(torch.autograd.grad(loss, (image, text)))
    assert max(relative_errors(*([part.double() for part in parts] for parts in found))) < bound


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_every_zero_stage_takes_the_same_steps(tmp_path: Path, precision: str, bound: float):
    config = small_run(tmp_path)
    ways = [(EngineConfig(zero_stage=stage, precision=precision), False) for stage in range(4)]
    expected = torch.tensor(plain_losses(config))
    for losses in on_ranks(1, engine_losses, config, ways)[0]:
        torch.testing.assert_close(torch.tensor(losses), expected, rtol=bound, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_host_waits_for_nothing():
    gpu = torch.device("cuda")
    model, batch = small_model_and_batch(gpu, torch.bfloat16)
    for mode in ("default", "error"):  # the first time, kernels are chosen and memory is taken
        torch.cuda.set_sync_debug_mode(mode)
        try:
            contrastive_loss(LossConfig(), model(batch), [len(batch)], World(0, 1, gpu)).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_next_batches_arrive_while_the_gpu_computes_and_nothing_waits_for_them(tmp_path: Path):
    config, world = small_run(tmp_path), World(0, 1, torch.device("cuda", 0))
    tokenizer = load_tokenizer(config.tokenizer)
    loader, expected = (TrainLoader(config.data, tokenizer, 8, 64, config.seed) for _ in range(2))
    feed, meter = Feed(loader, 1, StopRequest(), world), Meter(config, world)
    for _ in range(2):  # which take memory, pinned memory too
        feed.fetch()
        feed.take()
    torch.cuda._sleep(CYCLES)
    computed = torch.cuda.Event()
    computed.record()
    with meter.waiting():
        feed.fetch()
        time.sleep(0.1)
        feed._transfer._stream.synchronize()
    assert not computed.query(), "the copy is done, and the GPU still at work"
    (batch,) = feed.take().on_device
    assert torch.equal(batch.images.patches.cpu(), list(islice(expected, 3))[2].images.patches)
    assert waited(meter, batch) < 0.1
    with meter.waiting():
        time.sleep(0.1)
    assert waited(meter, batch) >= 0.1


def waited(meter: Meter, batch: Batch) -> float:
    """Seconds that a step counts as waiting."""
    one = torch.ones(1)
    meter.add([batch.to("cpu")], Contrast(one, one, one), applied=True)
    row = meter.row()
    return row["data_wait"] * row["seconds_per_batch"]
