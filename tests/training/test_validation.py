"""The validation loss: the same for any ranks, and the mean over groups that are always the same pairs."""

from __future__ import annotations

import pytest
import torch

from navit_clip.batch import Batch, Captions, PackedImages
from navit_clip.distributed import World
from navit_clip.errors import ConfigError, DataError
from navit_clip.loss import LossConfig, contrastive_loss
from navit_clip.model import ClipConfig, ImageTowerConfig, TextTowerConfig, TwoTowers
from tests.packs import noise_captions, noise_images
from tests.ranks import on_ranks
from training.validation import ValidationConfig, validation_loss

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
NUM_PAIRS = 11
TOWER = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}


def make_model() -> TwoTowers:
    torch.manual_seed(0)
    image = ImageTowerConfig(**TOWER, patch_size=4)
    return TwoTowers(ClipConfig(image=image, text=TextTowerConfig(**TOWER, vocab_size=30))).train()


def batch_of(numbers: list[int]) -> Batch:
    images = noise_images([(2, 1 + number) for number in range(NUM_PAIRS)], 4)
    captions = noise_captions([3 + number for number in range(NUM_PAIRS)], 30)
    return Batch(
        PackedImages.pack([images[number] for number in numbers]),
        Captions.pack([captions[number] for number in numbers], numbers),
        keys=tuple(f"pair{number}" for number in numbers),
    )


def loss_on_rank(world: World, shares: list[list[list[int]]], group: int) -> float:
    model = make_model()
    batches = [batch_of(numbers) for numbers in shares[world.rank]]
    loss = validation_loss(ValidationConfig(group=group), LossConfig(), model, batches, world)
    assert model.training, "the run's mode stays as it was"
    return loss


def test_one_group_is_the_loss_of_all_pairs():
    everything = batch_of(list(range(NUM_PAIRS)))
    expected = contrastive_loss(LossConfig(), make_model()(everything), [NUM_PAIRS], ALONE).item()
    found = loss_on_rank(ALONE, [[list(range(6)), list(range(6, NUM_PAIRS))]], group=256)
    assert found == pytest.approx(expected, rel=1e-6)


def test_neither_ranks_nor_batches_change_the_loss():
    shares = [[[10, 0], [3], [7, 5]], [], [[1, 2, 4, 6, 8, 9]]]
    expected = loss_on_rank(ALONE, [[list(range(NUM_PAIRS))]], group=4)
    for found in on_ranks(3, loss_on_rank, shares, 4):
        assert found == pytest.approx(expected, rel=1e-6)


def test_training_goes_on_with_captions_of_the_lengths_that_were_validated():
    model, batch = make_model(), batch_of([4, 1, 4])  # equal lengths apart: attention arranges them anew
    validation_loss(ValidationConfig(), LossConfig(), model, [batch], ALONE)
    contrastive_loss(LossConfig(), model(batch), [3], ALONE).backward()
    assert model.logit_scale.grad is not None


def test_no_pair_at_all_is_an_error():
    with pytest.raises(DataError, match="no usable pair"):
        loss_on_rank(ALONE, [[]], group=4)


def test_a_group_has_something_to_contrast():
    with pytest.raises(ConfigError, match="group: expected at least 2 pairs to contrast, found 1"):
        ValidationConfig(group=1)
