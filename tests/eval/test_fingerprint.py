from __future__ import annotations

from dataclasses import replace

import torch

from eval.fingerprint import fingerprint
from eval.image_config import ImageConfig
from eval.model import PackedModel, PackedPreparation
from eval.prompts import class_embeddings
from eval.store import Store
from navit_clip.distributed import World
from navit_clip.model import TwoTowers
from tests.eval_builders import ByteTokenizer, judged, small_model

CONFIG = ImageConfig(tokens_per_image=12, token_budget=40, num_workers=0)


class Backwards(ByteTokenizer):
    """Spells captions from their end."""

    def encode(self, captions, max_length):
        return super().encode([caption[::-1] for caption in captions], max_length)


class UpsideDown(PackedModel):
    """Turns pictures over."""

    def preparation(self, config):
        return Turned(4, config, 0)


class Turned(PackedPreparation):
    def prepare(self, pixels, key):
        return super().prepare(pixels[::-1].copy(), key)


def of_more_heads() -> TwoTowers:
    model = small_model()
    other = TwoTowers(replace(model.config, text=replace(model.config.text, num_heads=4)))
    other.load_state_dict(model.state_dict())
    return other


def test_what_weights_do_not_say_is_told_apart():
    models = (
        judged(),
        PackedModel(small_model(), Backwards()),
        UpsideDown(small_model(), ByteTokenizer()),
        judged(of_more_heads()),
    )
    assert len({fingerprint(model, CONFIG) for model in models}) == len(models)
    assert fingerprint(judged(), CONFIG) == fingerprint(judged(), CONFIG)


def test_classes_of_another_tokenizer_are_not_read(tmp_path):
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    store = Store(tmp_path, "the same weights")

    def classes(model: PackedModel, kept: Store | None) -> torch.Tensor:
        return class_embeddings(model, ["cat", "dog"], ["a {}"], alone, 40, store=kept)

    first, other = judged(), PackedModel(small_model(), Backwards())
    assert torch.equal(classes(first, store), classes(first, None))
    assert torch.equal(classes(first, store), classes(first, None))
    assert torch.equal(classes(other, store), classes(other, None))
    assert len(list(tmp_path.iterdir())) == 2
