"""The Python API: what users open and what they get."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import navit_clip
from eval.evaluate import main as evaluate
from eval.records import read_records
from navit_clip import NavitClip
from navit_clip.batch import PackedImages
from navit_clip.data import image_patches
from navit_clip.embedding import main as embed
from navit_clip.errors import CheckpointError, ConfigError, SampleError
from navit_clip.huggingface.export import main as export
from navit_clip.huggingface.importing import main as import_model
from navit_clip.weights import save_model, usual_tokens
from tests.data_builders import encode_image, noise_picture, write_pairs
from tests.foreign_folders import open_clip_folder, siglip2_folder, siglip_folder
from tests.huggingface.test_export import CAPTIONS, trained
from tests.packs import pack_captions


@pytest.fixture(scope="module")
def tokenizer():
    return navit_clip.train_tokenizer(CAPTIONS * 2, vocab_size=600)


@pytest.fixture
def folder(tmp_path, tokenizer) -> Path:
    save_model(trained(), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def pictures() -> list[Image.Image]:
    sizes = [(40, 60), (100, 8), (7, 7), (64, 64), (300, 200)]
    return [Image.fromarray(noise_picture(*size, seed)) for seed, size in enumerate(sizes)]


@torch.no_grad()
def test_vectors_are_those_of_the_towers(folder, tokenizer, monkeypatch):
    monkeypatch.setattr("navit_clip.pretrained.TOKEN_BUDGET", 300)  # several packs
    model = NavitClip.from_pretrained(folder, tokens_per_image=50)
    images, texts = model.encode_images(pictures()), model.encode_text(CAPTIONS)
    towers = trained()
    cut = [image_patches(encode_image(picture), 4, 50) for picture in pictures()]
    torch.testing.assert_close(images, towers.encode_images(PackedImages.pack(cut)), atol=1e-6, rtol=0)
    captions = pack_captions(tokenizer.encode(CAPTIONS, 64))
    torch.testing.assert_close(texts, towers.encode_captions(captions), atol=1e-6, rtol=0)
    expected = towers.logit_scale.exp() * images @ texts.T + towers.logit_bias
    torch.testing.assert_close(model.logits(images, texts), expected)


def test_pictures_of_any_mode(folder):
    model = NavitClip.from_pretrained(folder)
    see_through = Image.new("RGBA", (20, 30), (10, 20, 30, 0))
    white = Image.new("RGB", (20, 30), "white")
    vectors = model.encode_images([see_through, white, white.convert("L"), white.convert("P")])
    torch.testing.assert_close(vectors, vectors[:1].expand(4, -1), atol=1e-6, rtol=0)


def test_a_folder_of_transformers_opens_alike(tmp_path):
    theirs = siglip2_folder(tmp_path / "google")
    model = NavitClip.from_pretrained(str(tmp_path / "google"))
    assert torch.equal(model.towers.logit_scale, theirs.logit_scale)
    assert model.encode_text(["A dog"]).shape == (1, 16)


def test_a_broken_picture_is_named(folder, tmp_path):
    whole = encode_image(noise_picture(80, 80), "jpg")
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    model = NavitClip.from_pretrained(folder)
    broken = pytest.raises(SampleError, match=r"undecodable image: images\[1\]")
    with Image.open(tmp_path / "half.jpg") as picture, broken:
        model.encode_images([pictures()[0], picture])
    with pytest.raises(SampleError, match=r"empty image: images\[0\]: 0 x 5 pixels"):
        model.encode_images([Image.new("RGB", (0, 5))])


def test_one_alone_is_not_taken_for_several(folder, tmp_path):
    """In particular no sentence for its letters."""
    model = NavitClip.from_pretrained(folder)
    # As called where no test checks the types of arguments.
    images, texts = (
        inspect.unwrap(getattr(model, name).__func__) for name in ("encode_images", "encode_text")
    )
    for encode, given, message in (
        (texts, "a dog", r"texts: expected a list of strings, found one alone; pass it as \[...\]"),
        (texts, b"a dog", "texts: expected a list of strings, found a bytes"),
        (texts, None, "texts: expected a list of strings, found None"),
        (texts, ["a dog", 3], r"texts\[1\]: expected a string, found a int"),
        (
            images,
            pictures()[0],
            r"images: expected a list of PIL images, found one alone; pass it as \[...\]",
        ),
        (images, "photo.jpg", "images: expected a list of PIL images, found a str"),
        (images, tmp_path, "images: expected a list of PIL images, found a PosixPath"),
        (images, [pictures()[0], "photo.jpg"], r"images\[1\]: expected a PIL image, found a str"),
        (images, noise_picture(9, 9), r"images\[0\]: expected a PIL image, found a ndarray"),
    ):
        with pytest.raises(TypeError, match=message):
            encode(model, given)


@torch.no_grad()
def test_any_number_may_come_one_by_one(folder):
    model = NavitClip.from_pretrained(folder)
    assert torch.equal(model.encode_text(text for text in CAPTIONS[:3]), model.encode_text(CAPTIONS[:3]))
    assert torch.equal(model.encode_images(iter(pictures())), model.encode_images(pictures()))
    none = model.encode_images([]), model.encode_text([])
    assert [tuple(vectors.shape) for vectors in none] == [(0, 16), (0, 16)]
    assert model.logits(*none).shape == (0, 0)


def test_patches_of_an_image_are_as_the_model_says(folder, tokenizer, tmp_path):
    """As `navit-clip eval`, `export`, `embed` and `import` have them."""
    run, model = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-1" / "model"
    model.parent.mkdir(parents=True)
    shutil.copytree(folder, model)
    (model.parents[1] / "latest").write_text("step-1")
    (run / "config.yaml").write_text("evaluation: {tokens_per_image: 36}")
    export([str(run), str(tmp_path / "exported"), "--tower", "both"])
    export([str(run), str(tmp_path / "own"), "--format", "own"])
    siglip2_folder(tmp_path / "siglip2")
    siglip_folder(tmp_path / "siglip")
    open_clip_folder(tmp_path / "open_clip", "small_naflex_tower")
    for name in ("siglip", "open_clip"):
        import_model([str(tmp_path / name), str(tmp_path / f"{name}-imported")])
    export([str(tmp_path / "siglip-imported"), str(tmp_path / "siglip-exported"), "--tower", "image"])
    for name, tokens in (
        *((place, 36) for place in (run, model, tmp_path / "exported", tmp_path / "own")),
        (folder, 256),
        (tmp_path / "siglip2", 25),  # no processor says, but a table of 5 x 5
        (tmp_path / "siglip", 36),
        (tmp_path / "open_clip", 16),
        (tmp_path / "siglip-imported", 36),
        (tmp_path / "open_clip-imported", 16),
    ):
        assert NavitClip.from_pretrained(name).tokens_per_image == tokens
    assert usual_tokens(tmp_path / "siglip-exported") == 36
    imported, vectors = str(tmp_path / "siglip-imported"), tmp_path / "vectors"
    shards = write_pairs(tmp_path, [3])
    embed([imported, str(vectors), "--images", *shards, "--num-workers", "0"])
    assert json.loads((vectors / "vectors.json").read_text())["tokens_per_image"] == 36
    data = ["--dataset", "pairs", "--dataset_root", *shards, "--task", "zeroshot_retrieval"]
    evaluate(["--model", imported, *data, "--num_workers", "0"])
    (record,) = read_records(tmp_path / "siglip-imported" / "eval" / "results.jsonl")
    assert record["tokens_per_image"] == 36
    assert NavitClip.from_pretrained(run, tokens_per_image=9).tokens_per_image == 9


@torch.no_grad()
def test_both_snippets_of_the_readme_print_the_same_scores(folder, root, tmp_path, monkeypatch, capsys):
    readme = (root / "README.md").read_text()
    blocks = re.findall(r"((?:^    .*\n|^\n)+)", readme, re.M)
    ours, theirs = (next(block for block in blocks if name in block) for name in ("NavitClip", "AutoModel"))
    monkeypatch.chdir(tmp_path)
    model = Path("runs/small/checkpoints/step-1/model")
    model.parent.mkdir(parents=True)
    folder.rename(model)
    (model.parents[1] / "latest").write_text("step-1")
    Path("runs/small/config.yaml").write_text("evaluation: {tokens_per_image: 36}")
    export(["runs/small", "runs/small/export"])
    pictures()[0].save("photo.jpg")
    names = {}
    for block in (ours, theirs):
        exec("\n".join(line.removeprefix("    ") for line in block.splitlines()), names)
    capsys.readouterr()
    texts = names["model"](**names["inputs"]).logits_per_image[0, 0].sigmoid()
    (image,), packed = names["images"], NavitClip.from_pretrained("runs/small")
    expected = packed.logits(image[None], packed.encode_text(["a photo of a dog"]))[0, 0].sigmoid()
    torch.testing.assert_close(texts, expected, atol=1e-5, rtol=0)


def test_what_cannot_be_opened_is_said(folder, tmp_path):
    with pytest.raises(CheckpointError, match="and not to be had from the hub: offline mode is on"):
        NavitClip.from_pretrained("nobody/nothing")
    with pytest.raises(CheckpointError, match="no name of a repository"):
        NavitClip.from_pretrained(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"expected a model folder .* found an empty folder"):
        NavitClip.from_pretrained(tmp_path / "empty")
    (tmp_path / "empty" / "config.yaml").write_text("{}")
    with pytest.raises(CheckpointError, match="a run that has no checkpoint yet"):
        NavitClip.from_pretrained(tmp_path / "empty")
    (tmp_path / "empty" / "checkpoints").mkdir()
    (tmp_path / "empty" / "checkpoints" / "latest").write_text("step-7")
    with pytest.raises(CheckpointError, match=r"names a checkpoint that has no model: .*step-7"):
        NavitClip.from_pretrained(tmp_path / "empty")
    with pytest.raises(ConfigError, match="tokens_per_image"):
        NavitClip.from_pretrained(folder, tokens_per_image=0)


def test_the_five_lines_of_the_readme_run(folder, root, tmp_path, monkeypatch, capsys):
    readme = (root / "README.md").read_text()
    lines = next(block for block in re.findall(r"((?:^    .*\n|^\n)+)", readme, re.M) if "NavitClip" in block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    folder.rename(tmp_path / "runs" / "small")
    pictures()[0].save(tmp_path / "photo.jpg")
    exec("\n".join(line.removeprefix("    ") for line in lines.splitlines()), {})
    assert re.fullmatch(r"tensor\(\[\[0\.\d+, 0\.\d+\]\]\)\n", capsys.readouterr().out)
