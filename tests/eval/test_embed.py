from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from eval.embed import embed_captions, embed_images
from eval.image_config import ImageConfig
from eval.model import PackedModel
from eval.samples import ShardSamples
from eval.store import Store
from eval.task_config import EvalConfig, TaskConfig
from eval.views import View
from navit_clip.batch import Captions, PackedImages
from navit_clip.data.patches import image_patches
from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, ConfigError, DataError
from navit_clip.model import PositionConfig, TwoTowers
from tests.data_builders import SIZES
from tests.eval_builders import ByteTokenizer, judged, picture, small_model, write_labelled
from tests.ranks import on_ranks

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
CONFIG = ImageConfig(tokens_per_image=12, token_budget=40, num_workers=0)
CAPTIONS = ["stone", "a", "a rather long caption of a picture", "two words", "tree", "sky and sea", "b"]


def samples(folder, count=11, broken=()):
    return ShardSamples([write_labelled(folder / "images.tar", [0] * count, broken)], "txt", labels=False)


def test_images_in_packs_are_images_one_at_a_time(tmp_path):
    model = small_model()
    embedded = embed_images(judged(model), samples(tmp_path), ALONE, CONFIG)
    for number, vector in enumerate(embedded.vectors):
        alone = PackedImages.pack([image_patches(picture(number), patch_size=4, num_tokens=12)])
        torch.testing.assert_close(vector, model.encode_images(alone)[0], atol=1e-5, rtol=0)
    assert [sample.key for sample in embedded.samples] == samples(tmp_path).keys
    assert all(sample.image == b"" for sample in embedded.samples)


@pytest.mark.parametrize("reach", [3, 0])
def test_an_image_longer_than_positions_reach_is_squeezed(reach):
    """1 x 12 patches of 4 pixels, as they fit 12 tokens; a table of three a side takes 1 x 3 of them."""
    model = small_model()
    kind = {"kind": "learned_2d", "table_side": reach} if reach else {"kind": "grid"}
    image = replace(model.config.image, position=PositionConfig(**kind))
    preparation = judged(TwoTowers(replace(model.config, image=image))).preparation(CONFIG)
    patches, count = preparation.prepare(np.zeros((4, 48, 3), np.uint8), "key")
    assert (patches.grid, count) == ((1, reach or 12), reach or 12)


def test_captions_in_packs_are_captions_one_at_a_time():
    model, tokenizer = small_model(), ByteTokenizer()
    vectors = embed_captions(judged(model), CAPTIONS, ALONE, token_budget=1)
    for caption, vector in zip(CAPTIONS, vectors, strict=True):
        alone = Captions.pack(tokenizer.encode([caption], 32), identity=[0])
        torch.testing.assert_close(vector, model.encode_captions(alone)[0], atol=1e-5, rtol=0)


def test_worker_processes_change_nothing(tmp_path):
    alone = embed_images(judged(), samples(tmp_path), ALONE, CONFIG)
    config = ImageConfig(tokens_per_image=12, token_budget=40, num_workers=2)
    workers = embed_images(judged(), samples(tmp_path), ALONE, config)
    assert torch.equal(alone.vectors, workers.vectors)


def embedded_on(world: World, data) -> tuple:
    model = small_model()
    images = embed_images(judged(model), data, world, CONFIG)
    captions = embed_captions(judged(model), CAPTIONS, world, token_budget=32)
    keys = [sample.key for sample in images.samples]
    return images.vectors.tolist(), captions.tolist(), keys, dict(images.faults.counts)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_change_not_one_bit(tmp_path, size):
    """Two ranks share three packs, so that one of them has nothing to do in the last round."""
    data = samples(tmp_path, 8, broken=[2, 7])
    expected = embedded_on(ALONE, data)
    assert expected[3] == {"undecodable image": 2}
    assert on_ranks(size, embedded_on, data) == [expected] * size


class Interrupted(PackedModel):
    """Counts the packs that it embeds, and gives up before some of them."""

    def __init__(self, packs: int):
        super().__init__(small_model(), ByteTokenizer(), "small", "random")
        self.left = packs

    def encode_images(self, pack):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().encode_images(pack)


def test_an_interrupted_evaluation_goes_on_to_the_same_bits(tmp_path):
    data = samples(tmp_path, 11, broken=[1, 4])  # in four packs
    store = Store(tmp_path / "vectors", "weights")
    whole = embed_images(judged(), data, ALONE, CONFIG)
    with pytest.raises(KeyboardInterrupt):
        embed_images(Interrupted(2), data, ALONE, CONFIG, store=store)
    resumed = Interrupted(2)
    again = embed_images(resumed, data, ALONE, CONFIG, store=store)
    assert resumed.left == 0
    assert torch.equal(again.vectors, whole.vectors)
    assert again.samples == whole.samples
    assert again.faults.summary() == whole.faults.summary()
    assert again.mean_tokens == whole.mean_tokens
    kept = embed_images(Interrupted(0), data, World(0, 1, ALONE.device), CONFIG, store=store)
    assert torch.equal(kept.vectors, whole.vectors)


def test_another_task_in_a_suite_leaves_what_is_kept_of_the_others(tmp_path):
    data, shown = samples(tmp_path, 3), asdict(CONFIG)
    store = Store(tmp_path / "vectors", "weights")
    tasks = [TaskConfig(dataset=name, task="zeroshot_retrieval") for name in "ab"]
    whole = embed_images(judged(), data, ALONE, EvalConfig(**shown, tasks=tasks[:1]), store=store)
    longer = EvalConfig(**{**shown, "num_workers": 1}, tasks=tasks)
    assert torch.equal(embed_images(Interrupted(0), data, ALONE, longer, store=store).vectors, whole.vectors)


def test_what_is_kept_is_of_the_same_images_shown_alike(tmp_path):
    store = Store(tmp_path / "vectors", "weights")
    embed_images(judged(), samples(tmp_path, 3), ALONE, CONFIG, store=store)
    for config, view in ((replace(CONFIG, tokens_per_image=9), View()), (CONFIG, View(center=0.5))):
        with pytest.raises(KeyboardInterrupt):
            embed_images(Interrupted(0), samples(tmp_path, 3), ALONE, config, view, store)
    with pytest.raises(KeyboardInterrupt):
        embed_images(Interrupted(0), samples(tmp_path, 3, broken=[0]), ALONE, CONFIG, store=store)


def test_small_images_are_left_small_where_asked(tmp_path):
    """Of the seven sizes, 17 x 61 has 5 x 16 = 80 patches of 4 pixels and none has more than 200."""
    large = replace(CONFIG, tokens_per_image=1000, token_budget=1000)
    up = embed_images(judged(), samples(tmp_path, 7), ALONE, large)
    native = embed_images(judged(), samples(tmp_path, 7), ALONE, replace(large, upscale=False))
    expected = [-(-height // 4) * -(-width // 4) for height, width in SIZES]
    assert native.mean_tokens <= sum(expected) / 7
    assert native.mean_tokens >= 0.9 * sum(expected) / 7
    assert up.mean_tokens > 900


def test_dropped_patches_are_drawn_by_the_key(tmp_path):
    data = samples(tmp_path, 5)
    whole = embed_images(judged(), data, ALONE, CONFIG)
    half = embed_images(judged(), data, ALONE, replace(CONFIG, keep=0.5))
    again = embed_images(judged(), data, ALONE, replace(CONFIG, keep=0.5, num_workers=2))
    assert torch.equal(half.vectors, again.vectors)
    assert half.mean_tokens == pytest.approx(whole.mean_tokens / 2, abs=0.5)
    assert not torch.allclose(half.vectors, whole.vectors, atol=1e-2)


def test_unreadable_images_are_counted_and_left_out(tmp_path):
    whole = embed_images(judged(), samples(tmp_path), ALONE, CONFIG)
    partial = embed_images(judged(), samples(tmp_path, broken=[0, 7]), ALONE, CONFIG)
    assert dict(partial.faults.counts) == {"undecodable image": 2}
    assert len(partial.samples) == 9
    kept = [number for number in range(11) if number not in (0, 7)]
    torch.testing.assert_close(partial.vectors, whole.vectors[kept], atol=1e-5, rtol=0)


def test_nothing_readable_is_an_error_that_says_why(tmp_path):
    with pytest.raises(DataError, match=r"not one of 3 samples could be used; 3 skipped: undecodable image"):
        embed_images(judged(), samples(tmp_path, 3, broken=range(3)), ALONE, CONFIG)


def test_random_state_and_mode_are_left_alone(tmp_path):
    model = small_model().train()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    embed_images(judged(model), samples(tmp_path, 3), ALONE, CONFIG)
    embed_captions(judged(model), CAPTIONS, ALONE, token_budget=32)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert model.training
    assert torch.is_grad_enabled()


def test_a_diverged_model_is_not_scored(tmp_path):
    model = small_model()
    torch.nn.init.constant_(model.text.head.bias, torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        embed_captions(judged(model), CAPTIONS, ALONE, token_budget=32)


def test_a_budget_below_one_image_is_refused():
    with pytest.raises(
        ConfigError, match="token_budget: expected at least tokens_per_image = 256, found 100"
    ):
        ImageConfig(token_budget=100)
