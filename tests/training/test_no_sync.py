"""The host waits for no number of the device's between a batch and its gradients.

The towers, the loss and the backward pass run on a GPU that is not there: torch's fake tensors know shapes
and devices but no values: what asks for a value on the host, or for a shape that depends on values, raises.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from navit_clip.batch import Batch
from navit_clip.distributed import World
from navit_clip.loss import LossConfig, contrastive_loss
from navit_clip.model import (
    ClipConfig,
    ImageTowerConfig,
    PositionConfig,
    TextTowerConfig,
    TwoTowers,
    attention,
)
from tests.packs import noise_captions, noise_images, pack, pack_captions

GPU = torch.device("cuda")
SIZE = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}
GRIDS, CAPTIONS = [(3, 5), (3, 5), (2, 7), (1, 1)], [4, 9, 9, 1]


class Downloads(TorchDispatchMode):
    """Counts copies from the device to the host: each waits for what it copies."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        from_device = [part for part in args if isinstance(part, torch.Tensor) and part.is_cuda]
        if from_device and isinstance(result, torch.Tensor) and not result.is_cuda:
            self.count += 1
        return result


def make_batch() -> Batch:
    images = pack(noise_images(GRIDS, patch_size=4, keep=0.7))
    captions = pack_captions(noise_captions(CAPTIONS, vocab_size=50))
    return Batch(images, captions, tuple("abcd"))


def test_waiting_is_noticed():
    with FakeTensorMode(), Downloads() as downloads:
        number = torch.ones(1, device=GPU)
        with pytest.raises(DataDependentOutputException):
            number.item()
        number.to("cpu", non_blocking=True)
    assert downloads.count == 1


@pytest.mark.parametrize(
    ("kind", "positives"),
    [("learned", "pair"), ("grid", "same_caption"), ("fourier", "pair"), ("rope", "pair")],
)
def test_forward_loss_and_backward_wait_for_nothing(monkeypatch, kind, positives):
    monkeypatch.setattr(attention, "_chosen", "torch_varlen")  # what GPUs run
    config = ClipConfig(
        image=ImageTowerConfig(**SIZE, patch_size=4, position=PositionConfig(kind=kind, table_side=8)),
        text=TextTowerConfig(**SIZE, vocab_size=50),
    )
    batch = make_batch()
    for device in (GPU, torch.device("cpu")):
        with FakeTensorMode(allow_non_fake_inputs=True):
            with device:
                model = TwoTowers(config)
            there = batch.to(device)
            world = World(rank=0, size=1, device=device)
            with Downloads() as downloads:
                embeddings = model(there)
                loss = contrastive_loss(LossConfig(positives=positives), embeddings, [len(batch)], world)
                if device != GPU:  # autograd wants threads for each GPU that there is
                    loss.backward()
                    assert all(weight.grad is not None for weight in model.parameters())
        assert downloads.count == 0
