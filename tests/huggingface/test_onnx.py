"""ONNX: onnxruntime gives our vectors from the graphs of both towers, on grids of every shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from navit_clip.batch import PackedImages
from navit_clip.huggingface.export import main as export
from navit_clip.model import TwoTowers
from navit_clip.tokenizer import train_tokenizer
from navit_clip.weights import save_model
from tests.data_builders import noise_picture
from tests.foreign_folders import CAPTIONS
from tests.huggingface.test_own_architecture import GRIDS, built, padded_images
from tests.packs import noise_images, pack

BATCHES = ([(1, 1)], [(1, 2)], GRIDS, [(12, 12)], [(1, 12), (5, 3)])
"""Alone and unpadded, and of several shapes, padded to the longest."""


def exported(model: TwoTowers, folder: Path, *flags: str) -> Any:
    """onnxruntime's session of the image tower."""
    onnxruntime = pytest.importorskip("onnxruntime")
    save_model(model, train_tokenizer(CAPTIONS, 600), folder / "model")
    assert export(["model", "out", "--format", "onnx", "--tokens-per-image", "50", *flags]) == 0
    return onnxruntime.InferenceSession("out/image.onnx")


def run(session: Any, images: PackedImages) -> torch.Tensor:
    inputs = {name: values.numpy() for name, values in padded_images(images).items()}
    return torch.from_numpy(session.run(None, inputs)[0])


@torch.no_grad()
def test_a_table_s_graph_gives_our_vectors_and_refuses_what_is_beyond(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model = built(("learned_2d", "fractional", "sum"), depth=1)
    session = exported(model, tmp_path, "--tower", "image")
    for grids in BATCHES:
        images = pack(noise_images(grids, patch_size=4))
        torch.testing.assert_close(run(session, images), model.encode_images(images), atol=1e-5, rtol=0)
    for beyond in [(3, 13)], [(2, 2), (13, 1)]:
        with pytest.raises(Exception, match="out of data bounds"):
            run(session, pack(noise_images(beyond, patch_size=4)))


@pytest.mark.slow  # torch's exporter takes minutes on a busy machine
@pytest.mark.parametrize(
    ("position", "text"),
    [
        (("learned", "fractional", "sum"), {}),
        (("learned", "absolute", "product"), {"causal": True}),
        (("grid", "fractional", "sum"), {"alignment": "left"}),
        (("rope", "fractional_longer", "sum"), {"pooling": "map", "alignment": "left"}),
    ],
)
@torch.no_grad()
def test_graphs_give_our_vectors(tmp_path, position, text, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = built(position, **text)
    session = exported(model, tmp_path)
    assert "equal token ids" in capsys.readouterr().out
    for grids in BATCHES:
        images = pack(noise_images(grids, patch_size=4))
        torch.testing.assert_close(run(session, images), model.encode_images(images), atol=1e-5, rtol=0)
    Image.fromarray(noise_picture(40, 60)).save("photo.jpg")
    card = (tmp_path / "out" / "README.md").read_text()
    exec(card.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == "(1, 16)\n(2, 16)\n"
