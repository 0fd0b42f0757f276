"""Export: an exported folder, opened where this package cannot be imported, is the trained model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from navit_clip.batch import PackedImages
from navit_clip.config import load_config
from navit_clip.data import image_patches
from navit_clip.data.samples import read_samples
from navit_clip.errors import CheckpointError, ConfigError, DataError, ExportError
from navit_clip.huggingface.examples import find_examples
from navit_clip.huggingface.export import main
from navit_clip.huggingface.importing import main as import_model
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from navit_clip.tokenizer import load_tokenizer, train_tokenizer
from navit_clip.weights import load_model, save_model
from tests.data_builders import encode_image, noise_picture, pair, write_pairs, write_shard
from tests.packs import pack_captions, patches_of_pixels

PATCH_SIZE = 4
TOKENS_PER_IMAGE = 50
SIZES = [
    *((8, 8), (31, 17), (40, 100), (100, 40), (28, 28), (5, 90), (90, 20), (33, 47), (120, 80), (16, 16)),
    *((200, 150), (12, 13), (77, 50), (50, 77), (3, 3), (1, 20), (60, 61), (25, 100), (99, 98), (10, 40)),
]
CAPTIONS = [
    *(
        "",
        " a  dog ",
        "A DOG\tand\na cat",
        "<eos> <pad>",
        "▁",
        "naïve 日本語 👩‍👩‍👧",
        "word " * 80,
        "a.b,c!d?",
    ),
    *(
        f"{number} {animal} in the {place}"
        for number in range(23)
        for animal in ("dog", "cat")
        for place in "ab"
    ),
]

OPEN_ELSEWHERE = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("navit_clip", "training", "eval"):
            raise ImportError(f"{name} is not to be had here")

sys.meta_path.insert(0, Blocker())
folder, work = sys.argv[1:]
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, pipeline

model = AutoModel.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)
images = [Image.open(f"{work}/{number:02}.png") for number in range(20)]
captions = json.load(open(f"{work}/captions.json"))
inputs = processor(text=captions, images=images, return_tensors="pt")
slow = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=images, return_tensors="pt")
assert type(processor.image_processor).__name__ == "Siglip2ImageProcessor"
with torch.no_grad():
    outputs = model(**inputs)
    of_slow = model.get_image_features(**slow).pooler_output
ids = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
classify = pipeline("zero-shot-image-classification", model=folder)
ranked = classify(images[3], candidate_labels=captions[8:12], hypothesis_template="{}")
scores = {entry["label"]: entry["score"] for entry in ranked}
torch.save(
    {
        "image": outputs.image_embeds,
        "text": outputs.text_embeds,
        "logits": outputs.logits_per_image,
        "pixels": inputs["pixel_values"],
        "slow": dict(slow),
        "of_slow": torch.nn.functional.normalize(of_slow, dim=-1),
        "ids": ids,
        "scores": [scores[caption] for caption in captions[8:12]],
        "modules": [name for name in sys.modules if name.startswith("navit_clip")],
    },
    f"{work}/opened.pt",
)
"""


def trained(position: str = "learned", **text) -> TwoTowers:
    """A small model whose weights are none of its initial zeros and ones."""
    torch.manual_seed(1)
    size = {"depth": 2, "num_heads": 2, "mlp_dim": 40}
    table = PositionConfig(kind=position, table_side=5)  # type: ignore[arg-type]
    config = ClipConfig(
        image=ImageTowerConfig(**size, width=16, patch_size=PATCH_SIZE, position=table),
        text=TextTowerConfig(**size, width=24, vocab_size=600, **text),
    )
    model = TwoTowers(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.0)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS * 2, vocab_size=600)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer) -> Path:
    """A run folder: one checkpoint, and a config that names shards."""
    folder = tmp_path_factory.mktemp("run")
    save_model(trained(), tokenizer, folder / "checkpoints" / "step-00000001" / "model")
    (folder / "checkpoints" / "latest").write_text("step-00000001")
    shards = write_pairs(folder, [12])
    settings = {
        "data": {"shards": ["gone.tar"], "caption_key": "txt"},
        "validation": {"data": {"shards": shards, "caption_key": "txt"}},
        "evaluation": {"tokens_per_image": 50},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, (height, width) in enumerate(SIZES):
        Image.fromarray(noise_picture(height, width, seed=number)).save(folder / f"{number:02}.png")
    (folder / "captions.json").write_text(json.dumps(CAPTIONS))
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert main([str(run), str(folder)]) == 0
    return folder


@torch.no_grad()
def test_a_process_without_this_package_gets_our_embeddings(run, exported, pictures, tokenizer):
    assert len(CAPTIONS) == 100
    subprocess.run([sys.executable, "-I", "-c", OPEN_ELSEWHERE, exported, pictures], check=True)
    opened = torch.load(pictures / "opened.pt")
    assert opened["modules"] == []
    model = load_model(run / "checkpoints" / "step-00000001" / "model").model
    encoded = [(pictures / f"{number:02}.png").read_bytes() for number in range(20)]
    images = [image_patches(data, PATCH_SIZE, TOKENS_PER_IMAGE) for data in encoded]
    ids = tokenizer.encode(CAPTIONS, 64)
    of_images = model.encode_images(PackedImages.pack(images))
    of_captions = model.encode_captions(pack_captions(ids))
    assert opened["ids"] == ids
    torch.testing.assert_close(opened["image"], of_images, atol=1e-5, rtol=0)
    torch.testing.assert_close(opened["text"], of_captions, atol=1e-5, rtol=0)
    logits = model.logit_scale.exp() * of_images @ of_captions.T + model.logit_bias
    torch.testing.assert_close(opened["logits"], logits, atol=1e-4, rtol=0)
    # So do the patches of the processor on Pillow, which are others by a grey level here and there.
    from_slow = model.encode_images(PackedImages.pack(patches_of_pixels(opened["slow"])))
    torch.testing.assert_close(opened["of_slow"], from_slow, atol=1e-5, rtol=0)
    levels = (opened["slow"]["pixel_values"] - opened["pixels"]).abs() * 127.5
    assert 0.99 < levels.max() < 1.01
    assert SIZES[4] == (28, 28)
    assert levels[4].max() < 1e-4  # which needs no resize
    scores = torch.tensor(opened["scores"])
    torch.testing.assert_close(scores, logits[3, 8:12].sigmoid(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_was_trained_leaves_and_comes_back(run, exported, pictures, tmp_path):
    """Learned rows and columns come back as the one grid table that they are, biases as zeros."""
    assert import_model([str(exported), str(tmp_path / "back")]) == 0
    first = load_model(run / "checkpoints" / "step-00000001" / "model")
    back = load_model(tmp_path / "back")
    assert (first.model.config.image.position.kind, back.model.config.image.position.kind) == (
        "learned",
        "grid",
    )
    ids = first.tokenizer.encode(CAPTIONS, 64)
    assert back.tokenizer.encode(CAPTIONS, 64) == ids
    encoded = [(pictures / f"{number:02}.png").read_bytes() for number in range(20)]
    images = PackedImages.pack([image_patches(data, PATCH_SIZE, TOKENS_PER_IMAGE) for data in encoded])
    captions = pack_captions(ids)
    for encode, given in (("encode_images", images), ("encode_captions", captions)):
        expected = getattr(first.model, encode)(given)
        torch.testing.assert_close(getattr(back.model, encode)(given), expected, atol=1e-5, rtol=0)
    for name in ("logit_scale", "logit_bias"):
        assert torch.equal(getattr(back.model, name), getattr(first.model, name))


def test_no_picture_of_the_test_is_one_column_wide():
    grids = [
        image_patches(encode_image(noise_picture(*size)), PATCH_SIZE, TOKENS_PER_IMAGE).grid for size in SIZES
    ]
    assert len(grids) == 20
    assert len(set(grids)) == 9
    assert not any(rows > 1 and columns == 1 for rows, columns in grids)


@pytest.mark.real_data
@pytest.mark.parametrize(("tokens", "bound"), [(256, 1e-4), (64, 5e-4)])
@torch.no_grad()
def test_the_image_processor_on_pillow_moves_vectors_of_photographs_little(real_shards, root, tokens, bound):
    """By its grey levels: fewer the less a picture is reduced. The one on torchvision moves none."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    torch.manual_seed(0)
    model = TwoTowers(load_config(ClipConfig, root / "configs" / "model" / "s16.yaml")).eval()
    shard = str(real_shards / "flickr8k-small-test.tar")
    encoded = [sample.image for sample in islice(read_samples([shard]), 3)]
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]
    settings = {"patch_size": 16, "max_num_patches": tokens, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    slow = patches_of_pixels(Siglip2ImageProcessorPil(**settings)(images=pictures, return_tensors="pt"))
    ours = [image_patches(data, 16, tokens) for data in encoded]
    levels = [np.abs(a.pixels.astype(int) - b.pixels) for a, b in zip(ours, slow, strict=True)]
    assert max(level.max() for level in levels) == 1
    vectors, expected = (model.encode_images(PackedImages.pack(images)) for images in (slow, ours))
    torch.testing.assert_close(vectors, expected, atol=bound, rtol=0)


def test_the_export_says_what_it_compared(run, tmp_path, capsys):
    main([str(run), str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert "12 images of the run's validation shards: unit vectors at most" in printed.out
    assert "26 captions: equal token ids" in printed.out
    assert printed.err == ""


def test_a_checkpoint_is_verified_on_what_its_run_has(run, tmp_path, capsys):
    for place in (run / "checkpoints" / "step-00000001", run / "checkpoints" / "step-00000001" / "model"):
        main([str(place), str(tmp_path / "out"), "--tower", "image"])
        assert "12 images of the run's validation shards" in capsys.readouterr().out
        settings = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
        assert settings["max_num_patches"] == TOKENS_PER_IMAGE


def test_broken_samples_come_before_good_ones(tmp_path):
    broken = [{**pair(f"broken{number}", number), "png": b"nothing"} for number in range(120)]
    good = [pair(f"good{number}", number) for number in range(25)]
    write_shard(tmp_path / "a.tar", [*broken, *good])
    write_shard(tmp_path / "b.tar", broken)
    for shard, source, number in (
        ("a.tar", "of the run's validation shards", 20),
        ("b.tar", "of generated", 8),
    ):
        settings = {"validation": {"data": {"shards": [str(tmp_path / shard)], "caption_key": "txt"}}}
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "config.yaml").write_text(json.dumps(settings))
        examples = find_examples(None, tmp_path)
        assert examples.source.startswith(source)
        assert len(examples.images) == number


def test_without_data_the_images_are_generated_and_it_says_so(tokenizer, tmp_path, capsys):
    save_model(trained("grid"), tokenizer, tmp_path / "model")
    main([str(tmp_path / "model"), str(tmp_path / "out")])
    assert "8 images of generated noise" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "processor_config.json").read_text())["image_processor"]
    assert (settings["patch_size"], settings["max_num_patches"]) == (PATCH_SIZE, 256)


def test_the_runs_own_shards_are_fetched_as_the_run_fetched_them(tmp_path):
    (shard,) = write_pairs(tmp_path, [3])
    settings = {"data": {"shards": [f"file://{shard}"], "remote": {"cache": str(tmp_path / "cache")}}}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    assert len(find_examples(None, tmp_path).images) == 3
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 1


def test_images_may_be_a_folder_or_shards(run, pictures, tmp_path, capsys):
    main([str(run), str(tmp_path / "out"), "--images", str(pictures), "--tower", "image"])
    main([str(run), str(tmp_path / "out"), "--images", str(run / "shard-*.tar"), "--tower", "image"])
    printed = capsys.readouterr().out
    assert "20 images from" in printed
    assert "12 images from" in printed
    assert "captions" not in printed
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ExportError, match="found no image"):
        main([str(run), str(tmp_path / "out"), "--images", str(tmp_path / "none")])


@pytest.mark.parametrize("tower", ["both", "image", "text"])
def test_the_snippet_of_the_model_card_runs(run, tmp_path, tower, monkeypatch, capsys):
    main([str(run), str(tmp_path / "towers"), "--tower", tower])
    card = (tmp_path / "towers" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    Image.fromarray(noise_picture(40, 60)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(card.split("```python\n")[1].split("```")[0], {})
    printed = capsys.readouterr().out
    expected = {
        "both": "torch.Size([1, 16]) torch.Size([2, 16])",
        "image": "torch.Size([1, 16])\ntorch.Size([1, 50, 16])",
        "text": "torch.Size([2, 16])",
    }
    assert printed.startswith(expected[tower])


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGB"])
@torch.no_grad()
def test_pictures_of_other_modes_are_read_alike(run, exported, mode):
    from transformers import AutoModel, AutoProcessor

    picture = Image.fromarray(noise_picture(30, 50)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "tiff")
    model = load_model(run / "checkpoints" / "step-00000001" / "model").model
    ours = model.encode_images(PackedImages.pack([image_patches(buffer.getvalue(), PATCH_SIZE, 50)]))
    inputs = AutoProcessor.from_pretrained(exported)(images=picture, return_tensors="pt")
    theirs = AutoModel.from_pretrained(exported).get_image_features(**inputs).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(theirs), ours, atol=1e-5, rtol=0)


def test_what_siglip2_cannot_express_is_listed_and_nothing_is_left(tmp_path):
    save_model(trained("learned_2d", pooling="map"), load_tokenizer("open_clip"), tmp_path / "model")
    with pytest.raises(ExportError) as raised:
        main([str(tmp_path / "model"), str(tmp_path / "out")])
    for line in (
        "model.image.position.kind is learned_2d; train with learned or grid",
        "model.text.pooling is map; train with last",
        "tokenizer is of the form open_clip; train with one from `navit-clip tokenizer train`",
    ):
        assert line in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tower_that_can_be_expressed_may_leave_alone(tmp_path, capsys):
    save_model(trained(causal=True), load_tokenizer("open_clip"), tmp_path / "model")
    main([str(tmp_path / "model"), str(tmp_path / "out"), "--tower", "image"])
    assert "8 images" in capsys.readouterr().out


def test_there_must_be_an_image_to_verify_on(run, tmp_path):
    Image.fromarray(noise_picture(300, 4)).save(tmp_path / "one-column.png")
    with pytest.raises(ExportError, match="no image to verify"):
        main([str(run), str(tmp_path / "out"), "--images", str(tmp_path)])


@pytest.mark.parametrize("damaged", ["vision_model.head.probe", "text_model.head.bias", "logit_bias"])
def test_an_export_that_differs_is_refused(run, tmp_path, monkeypatch, damaged):
    from navit_clip.huggingface import folder

    def damage(weights, config):
        out = original(weights, config)
        out[damaged] = out[damaged] + 0.1
        return out

    original = folder.siglip2_weights
    monkeypatch.setattr(folder, "siglip2_weights", damage)
    with pytest.raises(ExportError, match="not the trained one"):
        main([str(run), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["siglip2", "own"])
def test_an_export_that_reads_captions_otherwise_is_refused(run, tmp_path, monkeypatch, form):
    from navit_clip.huggingface import folder

    original = folder.save_processor
    other = train_tokenizer(["wholly other words"] * 9, vocab_size=600)
    monkeypatch.setattr(
        folder, "save_processor", lambda loaded, *rest: original(loaded._replace(tokenizer=other), *rest)
    )
    with pytest.raises(ExportError, match=r"the exported tokenizer reads 'a photo of a dog\.' as "):
        main([str(run), str(tmp_path / "out"), "--format", form])
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_replaced(run, tmp_path):
    main([str(run), str(tmp_path / "out")])
    main([str(run), str(tmp_path / "out"), "--tower", "text"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "siglip2_text_model"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_else_is_in_the_way_is_left_alone(run, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("another model")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("navit_clip.huggingface.export.load_model", None)  # told before a model is loaded
    for folder in (str(tmp_path), "."):
        with pytest.raises(CheckpointError, match=r"found README\.md, config\.json$"):
            main([str(run), folder])
    with pytest.raises(CheckpointError, match=r"README\.md/out: cannot come to be there: .*md is a file$"):
        main([str(run), "README.md/out"])
    with pytest.raises(DataError, match="no shard matches"):
        main([str(run), "out", "--images", "absent"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json"]


def test_a_count_of_tokens_below_one_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="--tokens-per-image"):
        main([str(run), str(tmp_path / "out"), "--tokens-per-image", "0"])
