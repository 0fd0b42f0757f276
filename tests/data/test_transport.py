"""What arrives on the device is what was sent."""

import pytest
import torch

from navit_clip.batch import Batch
from navit_clip.data.pairs import Pair, batch_of
from navit_clip.data.patches import image_patches
from navit_clip.data.transport import Transfer, _tensors
from tests.data_builders import pair


def some_batch(number: int = 0) -> Batch:
    patches = image_patches(pair("x", number)["png"], 8, 40)
    return batch_of([Pair("x", patches, "a", [1, 2, number])] * 3)


def check_arrives(device: torch.device) -> None:
    transfer = Transfer(device)
    for number in range(20):
        batch = some_batch(number)
        moved = transfer(batch.pin_memory() if device.type == "cuda" else batch)
        assert moved.keys == batch.keys
        for sent, arrived in zip(_tensors(batch), _tensors(moved), strict=True):
            assert arrived.device.type == device.type
            assert torch.equal(arrived.cpu(), sent)


def test_a_batch_arrives_on_a_cpu():
    assert len(list(_tensors(some_batch()))) == 7
    check_arrives(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_arrives_on_a_gpu():
    check_arrives(torch.device("cuda", 0))
