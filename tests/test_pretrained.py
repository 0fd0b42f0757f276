"""The Python API: what users open and what they get."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import navit_clip
from navit_clip import NavitClip
from navit_clip.batch import PackedImages
from navit_clip.data import image_patches
from navit_clip.errors import CheckpointError, ConfigError, SampleError
from navit_clip.weights import save_model
from tests.data_builders import encode_image, noise_picture
from tests.foreign_folders import siglip2_folder
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
    with Image.open(tmp_path / "half.jpg") as picture, pytest.raises(SampleError, match="undecodable"):
        model.encode_images([picture])


def test_what_cannot_be_opened_is_said(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder here, and not to be had from the hub"):
        NavitClip.from_pretrained("nobody/nothing")
    with pytest.raises(CheckpointError, match="no name of a repository"):
        NavitClip.from_pretrained(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="expected a transformers folder"):
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
