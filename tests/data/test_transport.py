"""What arrives on the device is what was sent."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from navit_clip.batch import Batch, map_tensors
from navit_clip.data.pairs import Pair, batch_of
from navit_clip.data.patches import image_patches
from navit_clip.data.transport import Parcel, Transfer
from tests.data_builders import pair


def some_batch(number: int = 0) -> Batch:
    patches = image_patches(pair("x", number)["png"], 8, 40)
    return batch_of([Pair("x", patches, "a", [1, 2, number])] * 3)


def tensors_of(batch: Batch) -> list[Tensor]:
    tensors = []

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(batch, keep)
    return tensors


def check_arrives(device: torch.device) -> None:
    transfer = Transfer(device)
    for number in range(20):
        batch = some_batch(number)
        moved = transfer(Parcel.of(batch).pin_memory().open() if device.type == "cuda" else batch)
        assert moved.keys == batch.keys
        for sent, arrived in zip(tensors_of(batch), tensors_of(moved), strict=True):
            assert arrived.device.type == device.type
            assert torch.equal(arrived.cpu(), sent)


def test_a_batch_arrives_on_a_cpu():
    assert len(list(tensors_of(some_batch()))) == 7
    check_arrives(torch.device("cpu"))


class _Packing(IterableDataset):
    """Batches as a worker hands them over, and whether all their tensors lay in one shared block already."""

    def __iter__(self):
        for number in range(3):
            batch = some_batch(number)
            storages = [tensor.untyped_storage() for tensor in tensors_of(batch)]
            one = len({storage.data_ptr() for storage in storages}) == 1
            yield Parcel.of(batch), one and storages[0].is_shared()


def test_a_worker_packs_straight_into_the_memory_that_it_shares():
    handed = list(DataLoader(_Packing(), batch_size=None, num_workers=1, collate_fn=lambda handed: handed))
    assert len(handed) == 3
    for number, (parcel, was_shared) in enumerate(handed):
        assert was_shared
        batch, expected = parcel.open(), some_batch(number)
        assert batch.keys == expected.keys
        assert batch.images.max_length == expected.images.max_length
        for arrived, sent in zip(tensors_of(batch), tensors_of(expected), strict=True):
            assert arrived.dtype == sent.dtype
            assert torch.equal(arrived, sent)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_arrives_on_a_gpu():
    check_arrives(torch.device("cuda", 0))
