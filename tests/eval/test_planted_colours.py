"""Labels end to end: a picture of one colour in some folders of a data set, and a model that knows them.

What a folder shows is written down here, from the data sets' own lists, and not taken from the code's tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eval.image_config import ImageConfig
from eval.official_classified import OFFICIAL
from eval.task_config import EvalConfig, TaskConfig
from eval.tasks import evaluate
from navit_clip.distributed import World
from tests.data_builders import encode_image

ALONE = World(rank=0, size=1, device=torch.device("cpu"))

OBJECTNET = {
    "alarm_clock": ("alarm clock", "analog clock"),
    "backpack": ("backpack",),
    "chair": ("chair", "folding chair"),
    "dress_shoe_men": ("dress shoe (men)", "slip-on shoe"),
    "drying_rack_for_dishes": ("drying rack for plates", "plate rack"),
    "full_sized_towel": ("bath towel",),
    "hair_dryer": ("hair dryer",),
    "hand_towel_or_rag": ("dishrag or hand towel", "dishcloth"),
    "sock": ("sock",),
    "t-shirt": ("t-shirt", "T-shirt"),
    "weight_exercise": ("weight (exercise)", "dumbbell"),
}
"""A folder -> what it shows: in ObjectNet's words, and in the name of an ImageNet class of its own."""
IMAGENET = {
    "n01440764": ("tench",),
    "n02123045": ("tabby cat",),
    "n03376595": ("folding chair",),
    "n15075141": ("toilet paper",),
}
NUMBERED = {
    "2": ("great white shark",),
    "9": ("ostrich",),
    "10": ("brambling",),
    "99": ("goose",),
    "100": ("black swan",),
    "999": ("toilet paper",),
}
V2 = "imagenetv2-top-images"
CASES = {
    "objectnet-own-names": ("objectnet-1.0/images", OBJECTNET),
    "objectnet-restricted": ("objectnet-1.0/images", OBJECTNET),
    "objectnet-mapped": ("objectnet-1.0/images", OBJECTNET),
    "imagenet1k": ("val", IMAGENET),
    "imagenet-sketch": ("sketch", IMAGENET),
    V2: (f"{V2}-format-val", NUMBERED),
    "imagenet-a": ("imagenet-a", {"n01498041": ("stingray",), "n07753592": ("banana",)}),
    "imagenet-r": ("imagenet-r", {"n01498041": ("stingray",), "n02123045": ("tabby cat",)}),
}
STEP = 20
"""Between the shades of two folders."""
NUM_WORDS = 2000


class Knowing:
    """Sees in a shade what was written down of its folder, and in a prompt its words."""

    name = pretrained = "knowing"
    logit_scale = 10.0
    embedding_dim = NUM_WORDS
    precision = "float32"
    most_tokens = 1

    def __init__(self, shown: Sequence[Sequence[str]]):
        self.module = nn.Identity()
        self.shown = shown
        self.words: dict[str, int] = {}

    def preparation(self, config: ImageConfig) -> Knowing:
        return self

    def prepare(self, pixels: np.ndarray, key: str) -> tuple[int, int]:
        assert (pixels == pixels[0, 0]).all(), f"{key}: its border is still there"
        return int(pixels[0, 0, 0]) // STEP, 1

    def pack(self, images: list[Any]) -> list[int]:
        return images

    def encode_images(self, pack: list[int]) -> torch.Tensor:
        axes = [self.encode_captions(self.tokenize(self.shown[shade])).sum(dim=0) for shade in pack]
        return nn.functional.normalize(torch.stack(axes), dim=1)

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        return [[self.words.setdefault(caption, len(self.words))] for caption in captions]

    def encode_captions(self, ids: list[list[int]]) -> torch.Tensor:
        words = torch.tensor([word for (word,) in ids])
        return nn.functional.one_hot(words, NUM_WORDS).float()


def write_shades(folder: Path, shown: Sequence[str], border: int) -> None:
    for number, name in enumerate(shown):
        pixels = np.full((12, 16, 3), STEP * number, np.uint8)
        if border:
            red = np.full((12 + 2 * border, 16 + 2 * border, 3), (255, 0, 0), np.uint8)
            red[border:-border, border:-border] = pixels
            pixels = red
        (folder / name).mkdir(parents=True)
        (folder / name / "image.png").write_bytes(encode_image(pixels))


@pytest.mark.parametrize("dataset", CASES)
def test_every_picture_is_what_its_folder_says(tmp_path, dataset):
    place, shown = CASES[dataset]
    write_shades(tmp_path / place, list(shown), OFFICIAL[dataset]().border)
    task = TaskConfig(
        dataset=dataset,
        dataset_root=str(tmp_path),
        task="zeroshot_classification",
        templates=["plain"],
        incomplete=True,
    )
    config = EvalConfig(tasks=[task], tokens_per_image=1, token_budget=NUM_WORDS, num_workers=0)
    meanings = list(shown.values())
    (known,) = evaluate(Knowing(meanings), config, ALONE)
    assert (known.metrics["acc1"], known.num_samples) == (1, len(shown))
    # One that takes each folder for the next has nothing right.
    (mistaken,) = evaluate(Knowing([*meanings[1:], meanings[0]]), config, ALONE)
    assert mistaken.metrics["acc1"] == 0
