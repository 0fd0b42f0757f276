"""What arrives on the device is what was sent."""

import multiprocessing
import pickle
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from types import FrameType

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from navit_clip.batch import Batch, map_tensors
from navit_clip.data.pairs import Pair, batch_of
from navit_clip.data.patches import image_patches
from navit_clip.data.transport import (
    Block,
    NewBlock,
    Parcel,
    ReceivedBlocks,
    SharedBlocks,
    Transfer,
    private_block,
)
from tests.data_builders import pair


def some_batch(number: int = 0, size: int = 3, new_block: NewBlock = private_block) -> Batch:
    patches = image_patches(pair("x", number)["png"], 8, 40)
    return batch_of([Pair("x", patches, "a", [1, 2, number])] * size, number, new_block)


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
        sent = Parcel.of(batch).pin_memory().open() if device.type == "cuda" else batch
        moved = transfer.arrived(transfer.start(sent))
        assert moved.keys == batch.keys
        for sent, arrived in zip(tensors_of(batch), tensors_of(moved), strict=True):
            assert arrived.device.type == device.type
            assert torch.equal(arrived.cpu(), sent)


def test_a_batch_arrives_on_a_cpu():
    assert len(list(tensors_of(some_batch()))) == 7
    check_arrives(torch.device("cpu"))


class _Packing(IterableDataset):
    """Batches as a worker hands them over, and whether all their tensors lay in one shared block already."""

    def __init__(self, received: int, sizes: list[int]):
        self._received = received
        self._sizes = sizes

    def __iter__(self):
        blocks = SharedBlocks(self._received, worker=0)
        for number, size in enumerate(self._sizes):
            batch = some_batch(number, size, blocks.new)
            storages = [tensor.untyped_storage() for tensor in tensors_of(batch)]
            one = len({storage.data_ptr() for storage in storages}) == 1
            yield blocks.send(Parcel.of(batch)), one and storages[0].is_shared()


SIZES = [3, 1, 9, 3, 2, 30, 3, 1, 9, 4] * 4
"""Of more batches than a worker has blocks."""


def handed_over(received: ReceivedBlocks, sizes: list[int], pin_memory: bool = False) -> Iterator[Batch]:
    loader = DataLoader(
        _Packing(received.number, sizes),
        batch_size=None,
        num_workers=1,
        prefetch_factor=1,
        pin_memory=pin_memory,
        collate_fn=lambda handed: handed,
    )
    for number, (parcel, was_shared) in enumerate(loader):
        assert was_shared
        assert parcel.memory.is_pinned() == pin_memory
        batch = parcel.open()
        num_bytes = sum(tensor.nbytes for tensor in tensors_of(batch))
        # What is pinned is this, not the whole block, which may be any number of times as large.
        assert num_bytes <= len(parcel.memory) < num_bytes + 8 * len(tensors_of(batch))
        check_equal(batch, some_batch(number, sizes[number]))
        yield batch


def check_equal(batch: Batch, expected: Batch) -> None:
    assert batch.keys == expected.keys
    assert batch.images.max_length == expected.images.max_length
    for arrived, sent in zip(tensors_of(batch), tensors_of(expected), strict=True):
        assert arrived.dtype == sent.dtype
        assert torch.equal(arrived, sent)


def test_a_worker_packs_straight_into_the_memory_that_it_shares_and_uses_it_again():
    received = ReceivedBlocks()
    places = Counter(batch.images.patches.data_ptr() for batch in handed_over(received, [3] * 40))
    assert places.total() == 40
    assert len(places) == len(received) <= 4  # one here, one or two in the queue, one being filled


def test_what_is_held_is_left_alone():
    held = list(handed_over(ReceivedBlocks(), SIZES))
    for number, (batch, size) in enumerate(zip(held, SIZES, strict=True)):
        check_equal(batch, some_batch(number, size))


def test_a_part_of_a_batch_holds_its_block():
    received = ReceivedBlocks()
    parts = [
        (number, batch.images.patches[5:7]) for number, batch in enumerate(handed_over(received, [3] * 8))
    ]
    for number, part in parts:
        assert torch.equal(part, some_batch(number).images.patches[5:7])


def test_a_copy_of_this_process_that_drops_a_batch_leaves_its_block():
    received = ReceivedBlocks()
    blocks = SharedBlocks(received.number, worker=0)
    sent = ForkingPickler.dumps(blocks.send(Parcel.of(some_batch(new_block=blocks.new))))
    held = [pickle.loads(sent).open()]
    copy = multiprocessing.get_context("fork").Process(target=held.clear)
    copy.start()
    copy.join()
    (flag,) = (block.flag for block in blocks._blocks)
    assert flag == 1
    held.clear()
    assert flag == 0


def test_a_batch_that_needs_more_room_gets_another_block():
    received = ReceivedBlocks()
    for _ in handed_over(received, [1] * 10 + [100] * 10 + [1] * 10):
        pass
    assert len(received) <= 4


def test_the_training_process_does_no_more_for_more_images():
    """Calls of functions, Python's and C's, from what the queue holds to a batch on its device."""

    def calls(size: int) -> int:
        received = ReceivedBlocks()
        blocks, num_calls = SharedBlocks(received.number, worker=0), 0
        for number in range(2):  # the second goes without the block's handle
            parcel = blocks.send(Parcel.of(some_batch(number, size, blocks.new)))
            sent = ForkingPickler.dumps(parcel)
            if number == 0:
                first = pickle.loads(sent)
            blocks._blocks[0].flag[0] = 0

        def count(frame: FrameType, event: str, argument: object) -> None:
            nonlocal num_calls
            num_calls += event in ("call", "c_call")

        sys.setprofile(count)
        transfer = Transfer(torch.device("cpu"))
        moved = transfer.arrived(transfer.start(pickle.loads(sent).open()))
        sys.setprofile(None)
        assert len(moved.keys) == size
        del first
        return num_calls

    calls(1)  # what is done the first time alone
    assert 0 < calls(300) == calls(3)


def test_a_block_that_was_not_sent_is_used_again():
    blocks = SharedBlocks(ReceivedBlocks().number, worker=0)
    first = blocks.new(1000).memory.data_ptr()
    assert blocks.new(1000).memory.data_ptr() == first
    batch = some_batch(new_block=blocks.new)
    blocks.send(Parcel.of(batch))
    assert blocks.new(1000).memory.data_ptr() != batch.images.patches.untyped_storage().data_ptr()


def test_what_lies_elsewhere_is_not_handed_over():
    batch = some_batch()
    images, captions = batch.images, batch.captions
    for other in (
        replace(batch, captions=replace(captions, ids=captions.ids.clone())),
        replace(batch, images=replace(images, patches=images.patches[:, ::2])),
    ):
        with pytest.raises(ValueError, match="was not made in the batch's block"):
            Parcel.of(other)


def test_a_block_that_is_full_gives_no_more():
    block = Block(torch.zeros(20, dtype=torch.uint8))
    block.empty((3,), torch.int32)
    with pytest.raises(ValueError, match="a block of 20 bytes has no room up to byte 24"):
        block.empty((1,), torch.int64)
    assert len(block.empty((4,), torch.uint8)) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_blocks_that_are_used_again_arrive_on_a_gpu():
    """Pinned by DataLoader's thread, and let go while the GPU is still behind with work."""
    device = torch.device("cuda", 0)
    received, transfer, moved = ReceivedBlocks(), Transfer(device), []
    work = torch.ones(4096, 4096, device=device)
    for batch in handed_over(received, SIZES, pin_memory=True):
        work = work @ work / 4096
        moved.append(transfer.arrived(transfer.start(batch)))
    assert len(received) <= 5
    for number, (batch, size) in enumerate(zip(moved, SIZES, strict=True)):
        check_equal(batch.to("cpu"), some_batch(number, size))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_arrives_on_a_gpu():
    check_arrives(torch.device("cuda", 0))
